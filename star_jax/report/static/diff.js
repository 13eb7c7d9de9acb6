// What differs between two completions of a problem, word by word.

const MAX_CELLS = 1_000_000; // words of one text times words of the other; a page of rows then takes a tenth of a second

// [flags of a, flags of b]: whether each word is in the longest common subsequence. Null if the texts are too long.
function sharedWords(a, b) {
  const width = b.length + 1;
  if ((a.length + 1) * width > MAX_CELLS) return null;
  const lengths = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      const [below, right] = [lengths[(i + 1) * width + j], lengths[i * width + j + 1]];
      lengths[i * width + j] = a[i] === b[j] ? lengths[(i + 1) * width + j + 1] + 1 : Math.max(below, right);
    }
  }
  const flags = [a.map(() => false), b.map(() => false)];
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    if (a[i] === b[j]) {
      flags[0][i++] = true;
      flags[1][j++] = true;
    } else if (lengths[(i + 1) * width + j] >= lengths[i * width + j + 1]) i++;
    else j++;
  }
  return flags;
}

// A text as an element; words that are not `shared` are marked, with the space between two of them.
function marked(text, shared) {
  const pre = element("pre", "", "");
  let run = "";
  let isMarked = false;
  let index = 0;
  const flush = () => {
    if (run) pre.append(isMarked ? element("mark", "", run) : run);
    run = "";
  };
  for (const part of text.split(/(\s+)/).filter(Boolean)) {
    const space = /^\s/.test(part);
    const now = space ? isMarked && shared[index] === false : !shared[index++];
    if (now !== isMarked) flush();
    isMarked = now;
    run += part;
  }
  flush();
  return pre;
}

// Two texts as elements with their differences marked; unmarked if they share less than half of their words.
function difference(a, b) {
  const words = [a, b].map((text) => text.split(/\s+/).filter(Boolean));
  const flags = sharedWords(...words);
  const common = flags ? flags[0].filter(Boolean).length : 0;
  if (!common || 2 * common < Math.max(...words.map((list) => list.length))) return [a, b].map((text) => element("pre", "", text));
  return [marked(a, flags[0]), marked(b, flags[1])];
}
