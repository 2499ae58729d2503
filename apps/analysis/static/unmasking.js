// The slider hides what is filled in later; hovering shows when a token was filled in.
const slider = document.getElementById("step");
const spans = [...document.querySelectorAll(".token")];

function showStep() {
  const step = Number(slider.value);
  spans.forEach((span, index) => span.classList.toggle("masked", DATA.steps[index] > step));
  const filled = DATA.steps.filter((each) => each >= 0 && each <= step).length;
  document.getElementById("shown").textContent =
    step < 0 ? "before the first" : `${step + 1} of ${Number(slider.max) + 1}: ${filled} tokens filled in`;
}

function describe(index) {
  const step = DATA.steps[index];
  if (step > Number(slider.value)) return [element("div", "", "still masked")];
  return [
    element("div", "", element("b", "", DATA.labels[index]), ` token ${index + 1}`),
    element("div", "", step < 0 ? "given" : `filled in at step ${step + 1}, probability ${percent(DATA.confidence[index])}`),
  ];
}

slider.addEventListener("input", showStep);
showStep();
selectTokens(describe);
