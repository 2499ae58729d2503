// Hovering, tapping or the arrow keys show the surprisal of a token and the expected tokens.
const text = document.querySelector(".text");
const tokens = [...text.querySelectorAll(".token")];
let current = -1;

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

function choose(index) {
  tokens[current]?.classList.remove("on");
  current = index;
  const token = tokens[current];
  if (!token) {
    hideTip();
    return;
  }
  token.classList.add("on");
  const boxes = token.getClientRects();
  showTip(describe(current), boxes[0] ?? token.getBoundingClientRect());
}

text.addEventListener("pointerover", (event) => {
  const token = event.target.closest(".token");
  choose(token ? tokens.indexOf(token) : -1);
});
text.addEventListener("pointerleave", () => choose(-1));
text.addEventListener("pointerdown", (event) => {
  const token = event.target.closest(".token");
  if (token) choose(tokens.indexOf(token));
});
document.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (event.key === "Escape") choose(-1);
  if (!step) return;
  event.preventDefault();
  const next = Math.max(0, Math.min(tokens.length - 1, current + step));
  tokens[next].scrollIntoView({ block: "nearest" });
  choose(next);
});
addEventListener("scroll", () => choose(-1), { passive: true });
