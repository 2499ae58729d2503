// Hovering, tapping or the arrow keys show the surprisal of a token and the expected tokens.
function describe(index) {
  const [label, bits, rank, context] = DATA.tokens[index];
  const lines = [element("div", "", element("b", "", label), ` token ${index + 1}`)];
  if (bits === null) {
    lines.push(element("div", "", "not predicted: nothing comes before it"));
    return lines;
  }
  lines.push(
    element("div", "", `${bits.toFixed(3)} bits = ${(bits * Math.LN2).toFixed(3)} nats, probability ${percent(2 ** -bits)}`),
    element("div", "", rank === 0 ? "the most likely token" : `${rank.toLocaleString("en")} tokens were more likely`),
    element("div", "", `after ${context} token${context === 1 ? "" : "s"} of context`),
  );
  const rows = DATA.alternatives[index].map(([word, probability, same]) => {
    const bar = element("progress", "");
    bar.max = 1;
    bar.value = probability;
    return [element("span", same ? "is" : "", DATA.words[word]), percent(probability), bar];
  });
  lines.push(table([["expected", "token"], ["probability", "number"], ["", ""]], rows));
  return lines;
}

selectTokens(describe);
