// Colors, and numbers in words.
"use strict";

const INK = "#1d232b",
  SOFT = "#56606b",
  RULE = "#dfe3e8",
  GRID = "#edf0f3";
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
const SYMBOLS = [
  "circle",
  "square",
  "diamond",
  "triangle-up",
  "triangle-down",
  "cross",
  "x",
  "star-diamond",
];
const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif';
// One hue from paper to ink, and two hues that meet in near-white: readable in gray and by
// color-blind readers.
// The palest cell still stands out from the paper, which is where there is no cell.
const SEQUENTIAL = [
  [0, "#e9f1f7"],
  [0.25, "#c0d7e8"],
  [0.5, "#7fb0d3"],
  [0.75, "#2f7ab0"],
  [1, "#0a3d66"],
];
const DIVERGING = [
  [0, "#0a4f82"],
  [0.25, "#6fa6cf"],
  [0.5, "#eeede8"],
  [0.75, "#e09a63"],
  [1, "#8f3a05"],
];

// Where a value stands on its color scale, from 0 to 1. Around a center, both hues deepen alike,
// also where the ends are not equally far from it.
const colorPlace = (value, ends, center) =>
  center === null
    ? (value - ends[0]) / (ends[1] - ends[0] || 1)
    : 0.5 + (value - center) / (2 * Math.max(center - ends[0], ends[1] - center) || 1);

const bytes = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
function colorAt(scale, place) {
  const i = Math.min(scale.length - 2, Math.floor(place * (scale.length - 1)));
  const [[from, first], [to, second]] = [scale[i], scale[i + 1]];
  const share = (place - from) / (to - from);
  const [a, b] = [bytes(first), bytes(second)];
  return `rgb(${a.map((v, k) => Math.round(v + share * (b[k] - v))).join(",")})`;
}
const colorScale = (ends, center) =>
  center === null
    ? SEQUENTIAL
    : Array.from({ length: 41 }, (_, k) => [
        k / 40,
        colorAt(DIVERGING, colorPlace(ends[0] + (k / 40) * (ends[1] - ends[0]), ends, center)),
      ]);

// A name as it is said: `refusal_rate` is "refusal rate".
const spoken = (name) => String(name).replace(/_/g, " ");

// Plotly reads a little HTML in its texts; words from a record are shown as they are.
const plain = (words) =>
  String(words).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

// The rules of report/numbers.py: as many places as the interval's width supports.
const minus = (words) => words.replace("-", "−");
const show = (value, places) => {
  if (value === null || value === undefined) return "not measured";
  if (places !== undefined)
    return minus(
      value.toLocaleString("en-US", {
        minimumFractionDigits: places,
        maximumFractionDigits: places,
      }),
    );
  return minus(
    Math.abs(value) >= 100
      ? Math.round(value).toLocaleString("en-US")
      : String(Number(value.toPrecision(3))),
  );
};
const isKnown = (value) => value !== null && value !== undefined;
const placesFor = (low, high) =>
  isKnown(low) && isKnown(high) && high !== low
    ? Math.max(0, Math.min(6, 1 - Math.floor(Math.log10(Math.abs(high - low)))))
    : undefined;
const showInterval = (low, high, places) =>
  isKnown(low) && isKnown(high) ? `[${show(low, places)}, ${show(high, places)}]` : "";
const estimate = (value, low, high) =>
  `${show(value, placesFor(low, high))} ${showInterval(low, high, placesFor(low, high))}`.trim();

// `metric` is the one that is drawn: among the further ones it would be said twice.
function hoverText(drawing, metric, value, low, high, n, extra, nullLow, nullHigh) {
  const lines = [
    `${estimate(value, low, high)}${isKnown(n) ? `, n = ${n.toLocaleString("en-US")}` : ""}`,
  ];
  if (isKnown(nullLow)) lines.push(`null ${showInterval(nullLow, nullHigh, placesFor(low, high))}`);
  if (extra)
    drawing.figure.hover.forEach((name, i) => {
      if (name !== metric && isKnown(extra[i]))
        lines.push(`${plain(spoken(name))}: ${plain(extra[i])}`);
    });
  return lines.join("<br>");
}
