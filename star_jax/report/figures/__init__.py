"""The page's figures: `series` and `panels` compute what they show, `plots` draws it, `svg` embeds it in the page."""
