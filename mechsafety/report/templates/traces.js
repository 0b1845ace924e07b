// From the numbers of a panel to Plotly's traces. Draws what it is given; computes no statistic.
"use strict";

const axisName = (letter, i) => letter + (i === 0 ? "" : i + 1);
const rgba = (hex, alpha) => `rgba(${bytes(hex).join(",")},${alpha})`;

function band(x, low, high, color, group, axes, skip) {
  const known = x.map((_, i) => i).filter((i) => low[i] !== null && high[i] !== null);
  if (known.length < 2) return [];
  const back = [...known].reverse();
  return [
    {
      type: "scatter",
      mode: "lines",
      fill: "toself",
      fillcolor: color,
      line: { width: 0, color },
      hoverinfo: "skip",
      x: [...known, ...back].map((i) => x[i]),
      y: [...known.map((i) => low[i]), ...back.map((i) => high[i])],
      legendgroup: group,
      showlegend: false,
      name: group,
      ...axes,
      ...skip,
    },
  ];
}

// Bars from the lower to the upper end of each interval.
function whiskers(series, color) {
  const distance = (ends) =>
    series.y.map((y, i) => (y === null || !isKnown(ends[i]) ? 0 : Math.abs(ends[i] - y)));
  return {
    type: "data",
    symmetric: false,
    array: distance(series.high),
    arrayminus: distance(series.low),
    color,
    thickness: 1.4,
    width: 4,
    visible: series.low.some(isKnown),
  };
}

// Numbers of a line or of bars as hovering says them.
const hoverTexts = (drawing, metric, series, withNull) =>
  series.y.map((y, i) =>
    hoverText(
      drawing,
      metric,
      y,
      series.low[i],
      series.high[i],
      series.n[i],
      series.extra[i],
      ...(withNull ? [series.null_low[i], series.null_high[i]] : []),
    ),
  );

// `tint` and `nullTint` say how opaque bands are; `nullsDrawn` holds those of earlier lines.
function lineTraces(drawing, metric, series, axes, style) {
  const { rank, first, unified, tint, nullTint, nullsDrawn } = style;
  const numeric = typeof series.x[0] === "number";
  const x = numeric ? series.x : series.x.map(plain);
  const bands = numeric
    ? band(series.x, series.low, series.high, rgba(series.color, tint), series.name, axes, {
        meta: "band",
      })
    : [];
  // Lines that share their null share one gray band; six laid over each other would look darker.
  const nullKey = JSON.stringify([axes, series.null_low, series.null_high]);
  const nulls =
    numeric && series.null_low.length && !nullsDrawn.has(nullKey)
      ? band(series.x, series.null_low, series.null_high, rgba(SOFT, nullTint), "", axes, {
          meta: "null",
        })
      : [];
  nullsDrawn.add(nullKey);
  if (nulls.length && unified) {
    nulls.push({
      type: "scatter",
      mode: "lines",
      line: { width: 0, color: "#a6adb5" },
      x: series.x,
      y: series.null_high,
      customdata: series.x.map((_, i) => showInterval(series.null_low[i], series.null_high[i])),
      hovertemplate: "<b>null range</b> %{customdata}<extra></extra>",
      meta: "null",
      legendgroup: "",
      showlegend: false,
      ...axes,
    });
  }
  // A band of one point cannot be seen, so single points carry a bar, as words on x do.
  const bars = (!numeric || series.x.length < 2) && series.low.some(isKnown);
  return [
    ...nulls,
    ...bands,
    {
      type: "scatter",
      mode: "lines+markers",
      name: series.name || drawing.figure.title,
      x,
      y: series.y,
      line: { color: series.color, width: 2, dash: DASHES[series.dash % DASHES.length] },
      marker: {
        color: series.color,
        size: 7,
        symbol: SYMBOLS[rank % SYMBOLS.length] + (series.dash ? "-open" : ""),
      },
      ...(bars ? { error_y: whiskers(series, series.color) } : {}),
      customdata: hoverTexts(drawing, metric, series, !unified),
      hovertemplate: `${series.name ? `<b>${plain(series.name)}</b> ` : ""}%{customdata}<extra></extra>`,
      legendgroup: series.name,
      showlegend: first,
      connectgaps: false,
      ...axes,
    },
  ];
}

// Bars stand on x, or lie beside their words on y where these are many and long.
function barTraces(drawing, metric, series, axes, { first, lying, alone }) {
  const [words, length] = lying ? ["y", "x"] : ["x", "y"];
  // Bars that never share a place take the whole of it.
  const group = alone ? {} : { offsetgroup: series.name };
  const main = {
    type: "bar",
    orientation: lying ? "h" : "v",
    name: series.name || drawing.figure.title,
    [words]: series.x.map(plain),
    [length]: series.y,
    ...group,
    legendgroup: series.name,
    marker: { color: rgba(series.color, 0.82), line: { color: series.color, width: 1 } },
    showlegend: first,
    [`error_${length}`]: whiskers(series, INK),
    customdata: hoverTexts(drawing, metric, series, true),
    hovertemplate: `<b>${plain(series.name)}</b> %{${words}}<br>%{customdata}<extra></extra>`,
    ...axes,
  };
  if (!series.null_low.length) return [main];
  return [
    main,
    {
      type: "bar",
      orientation: main.orientation,
      [words]: series.x.map(plain),
      base: series.null_low,
      [length]: series.null_low.map((low, i) => (low === null ? null : series.null_high[i] - low)),
      ...group,
      legendgroup: series.name,
      name: series.name,
      meta: "null",
      showlegend: false,
      hoverinfo: "skip",
      marker: {
        color: "rgba(255,255,255,0.55)",
        line: { color: SOFT, width: 1 },
        pattern: { shape: "/", fgcolor: SOFT, size: 5, solidity: 0.25 },
      },
      ...axes,
    },
  ];
}

function scatterTraces(series, rank, axes, first) {
  return [
    {
      type: "scatter",
      mode: "markers",
      name: series.name,
      x: series.x,
      y: series.y,
      legendgroup: series.name,
      showlegend: first,
      marker: {
        color: rgba(series.color, 0.62),
        size: 6.5,
        symbol: SYMBOLS[rank * 2],
        line: { color: "#ffffff", width: 0.6 },
      },
      hovertemplate: `<b>${plain(series.name)}</b> (%{x:.3~g}, %{y:.3~g})<extra></extra>`,
      ...axes,
    },
  ];
}

// A rounded −0.00 would claim a sign that its digits do not show.
const fixed = (value, places) => {
  const words = value.toFixed(places);
  return /[1-9]/.test(words) ? minus(words) : words.replace("-", "");
};

// What of each cell's numbers fits into it: the same for all grids of a panel, because a grid with
// intervals beside one without them would look like another measurement.
function cellStyle(grids, cellWidth, cellHeight) {
  const all = (name) => grids.flatMap((grid) => grid[name].flat()).filter(isKnown);
  const largest = Math.max(...all("value").map(Math.abs), 0);
  const places = largest < 1.5 ? 2 : largest < 100 ? 1 : 0;
  const longest = (words) => Math.max(...words.map((word) => word.length), 1);
  const across = longest(all("value").map((v) => fixed(v, places)));
  const size = [13, 10.5, 9.5].find(
    (size) => 4 + 0.6 * size * across <= cellWidth && size + 5 <= cellHeight,
  );
  const bounds = grids.flatMap((grid) =>
    grid.value.flatMap((row, j) => row.map((_, i) => boundsOf(grid, j, i, places))),
  );
  // Five pixels a character at their size; clipped intervals would be worse than none.
  const intervals = size && cellHeight >= 38 && cellWidth >= 5 + 4.9 * longest(bounds);
  return { places, size, intervals };
}

const boundsOf = (grid, j, i, places) =>
  [grid.value, grid.low, grid.high].every((of) => isKnown(of[j][i]))
    ? `[${fixed(grid.low[j][i], places)}, ${fixed(grid.high[j][i], places)}]`
    : "";

// What stands in each cell: the value, and its interval where all of them fit.
function cellTexts(grid, style, ends, center) {
  return grid.value.map((row, j) =>
    row.map((value, i) => {
      if (value === null) return "";
      // Ink that can be read on the cell's own color.
      const depth = colorPlace(value, ends, center);
      const dark = center === null ? depth > 0.62 : depth < 0.2 || depth > 0.8;
      const bounds = style.intervals ? boundsOf(grid, j, i, style.places) : "";
      const small = bounds && `<br><span style="font-size:9.5px">${bounds}</span>`;
      return `<span style="color:${dark ? "#ffffff" : INK}">${fixed(value, style.places)}${small}</span>`;
    }),
  );
}

// A cell that has a row and no value; one without a row was never meant to be measured.
const isMissing = (grid, j, i) => grid.value[j][i] === null && isKnown(grid.n[j][i]);

function gridTraces(drawing, metric, grid, axes, ends, center, style) {
  const common = {
    type: "heatmap",
    x: grid.x.map(plain),
    y: grid.y.map(plain),
    xgap: 2,
    ygap: 2,
    hoverongaps: false,
    customdata: grid.value.map((row, j) =>
      row.map((value, i) =>
        hoverText(
          drawing,
          metric,
          value,
          grid.low[j][i],
          grid.high[j][i],
          grid.n[j][i],
          (grid.extra[j] || [])[i],
        ),
      ),
    ),
    hovertemplate:
      `${plain(spoken(drawing.figure.y))} <b>%{y}</b>, ` +
      `${plain(spoken(drawing.figure.x))} <b>%{x}</b><br>` +
      `${plain(spoken(metric))} %{customdata}<extra></extra>`,
    ...axes,
  };
  const main = { ...common, z: grid.value, coloraxis: "coloraxis" };
  if (style.size)
    Object.assign(main, {
      text: cellTexts(grid, style, ends, center),
      texttemplate: "%{text}",
      textfont: { size: style.size },
    });
  // Missing cells are hatched by `hatching`; this is what hovering over them finds.
  const gaps = grid.value.map((row, j) => row.map((_, i) => (isMissing(grid, j, i) ? 0 : null)));
  if (!gaps.flat().includes(0)) return [main];
  const clear = { colorscale: [0, 1].map((at) => [at, "rgba(0,0,0,0)"]), zmin: 0, zmax: 1 };
  return [main, { ...common, ...clear, z: gaps, showscale: false, meta: "missing" }];
}

// Gray cells with slanted lines where a grid has a row and no value, as two shapes in all.
function hatching(grid, xref, yref) {
  // Places are counted in cells. These never equal a word on an axis, such as the layer 1, which
  // Plotly would take for that word's place.
  const half = 0.4713;
  const slants = [-0.63, -0.31, 0.013, 0.33, 0.64];
  const at = (x, y) => `${x.toFixed(4)},${y.toFixed(4)}`;
  let cells = "";
  let lines = "";
  grid.value.forEach((row, j) =>
    row.forEach((_, i) => {
      if (!isMissing(grid, j, i)) return;
      const [left, right, low, high] = [i - half, i + half, j - half, j + half];
      cells += `M${at(left, low)}L${at(right, low)}L${at(right, high)}L${at(left, high)}Z`;
      slants.forEach((slant) => {
        const start = [Math.max(-half, slant - half), Math.max(-half, -slant - half)];
        const stop = [Math.min(half, slant + half), Math.min(half, half - slant)];
        lines += `M${at(i + start[0], j + start[1])}L${at(i + stop[0], j + stop[1])}`;
      });
    }),
  );
  if (!cells) return [];
  const common = { type: "path", xref, yref, layer: "below" };
  return [
    { ...common, path: cells, fillcolor: "#e3e6ea", line: { width: 0 } },
    { ...common, path: lines, line: { width: 1, color: "#9aa3ad" } },
  ];
}
