// Format numbers, times and words for display.

const grouped = new Intl.NumberFormat("en");

export const integer = (value) => (value === null || value === undefined ? "" : grouped.format(value));

/** 2.5017 0.00031200 1.2e+9: a fixed number of digits, so that columns align. */
export function number(value) {
  if (value === null || value === undefined) return "";
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e6 || size < 1e-4) return value.toExponential(3);
  if (size >= 1000) return value.toFixed(1);
  return value.toFixed(4);
}

/** Half the width of an interval, with two significant digits: 0.018 4.1 210 */
export function half(value) {
  return Math.abs(value) >= 10 ? value.toFixed(0) : String(Number(value.toPrecision(2)));
}

/** 1234567 -> 1.23M */
export function compact(value) {
  if (value === null || value === undefined) return "";
  for (const [size, unit] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= size) return `${(value / size).toPrecision(3)}${unit}`;
  }
  return String(value);
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  const whole = Math.round(seconds);
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60), whole % 60];
  const two = (value) => String(value).padStart(2, "0");
  if (hours >= 24) return `${Math.floor(hours / 24)}d ${two(hours % 24)}h`;
  if (hours) return `${hours}h ${two(minutes)}m`;
  return minutes ? `${minutes}m ${two(rest)}s` : `${rest}s`;
}

export function moment(milliseconds) {
  const when = new Date(milliseconds);
  const two = (value) => String(value).padStart(2, "0");
  const day = `${when.getFullYear()}-${two(when.getMonth() + 1)}-${two(when.getDate())}`;
  return `${day} ${two(when.getHours())}:${two(when.getMinutes())}`;
}

export const plural = (count, word) => `${integer(count)} ${word}${count === 1 ? "" : "s"}`;

/** A value of a configuration or a manifest. */
export function value(thing) {
  if (thing === null || thing === undefined) return "–";
  return typeof thing === "object" ? JSON.stringify(thing) : String(thing);
}
