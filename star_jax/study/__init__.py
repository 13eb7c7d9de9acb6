"""Studies: arms of one experiment, each with the same seeds, and whether they differ.

spec.py        a study config -> the config of each run
execution.py   makes the runs that are missing: a base for each seed, and from it every arm
outcomes.py    a finished run -> what it solved and what it cost
comparison.py  outcomes -> each arm against the reference arm, tested
findings.py    both, of a whole study
tables.py      findings -> the tables of the page and of the terminal
page.py        findings -> study.html
"""
