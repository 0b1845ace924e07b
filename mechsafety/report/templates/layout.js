// Where things stand in a figure: facets, axes, marks and titles, at one width.
"use strict";

const NARROW = 620;
const NAMES = 20; // room above lying bars for the names of vertical references
const layoutAxis = (letter, i) => letter + "axis" + (i === 0 ? "" : i + 1);
const isNumber = (word) => word !== "" && Number.isFinite(Number(word));
const isGrid = (kind) => kind === "heatmap" || kind === "matrix";

// The ends of an axis that shows every number given, with a little room.
function extent(numbers, withZero) {
  const known = numbers.filter((v) => v !== null && v !== undefined);
  if (withZero) known.push(0);
  if (!known.length) return [0, 1];
  const low = Math.min(...known),
    high = Math.max(...known),
    room = 0.05 * (high - low) || 0.05 * Math.abs(high) || 0.5;
  return [withZero && low === 0 ? 0 : low - room, withZero && high === 0 ? 0 : high + room];
}

// Where each facet lies, in fractions of the plot; on a narrow screen one below the other. `across`
// and `down` are the cells of a grid, or the lines of bars that lie. Grids and scatters are no wider
// than reads well.
function places(count, kind, width, margins, across, down, tilt) {
  const narrow = width < NARROW,
    square = kind === "matrix" || kind === "scatter";
  const columns = narrow ? 1 : Math.min(count === 4 || kind === "matrix" ? 2 : 3, count);
  const rows = Math.ceil(count / columns);
  const spaceX = columns > 1 ? (kind === "scatter" ? 58 : square ? 34 : 24) : 0,
    spaceY = rows > 1 ? 58 + tilt : 0;
  const widest = { matrix: across * 96, scatter: 520 }[kind] || Infinity;
  const cellWide = Math.min(widest, (width - margins - spaceX * (columns - 1)) / columns);
  const cellHigh =
    {
      matrix: Math.min(
        down * 72,
        Math.max(140, down * (down > 16 ? 14 : 26), (cellWide / across) * down * 0.86),
      ),
      heatmap: Math.min(380, Math.max(96, down * (narrow ? 40 : 54))),
      scatter: Math.min(360, Math.max(240, cellWide * 0.8)),
      lying: down * 18,
    }[kind] || (columns === 1 ? (narrow ? 250 : 350) : 270);
  const inner = columns * cellWide + (columns - 1) * spaceX,
    height = rows * cellHigh + (rows - 1) * spaceY;
  return {
    inner,
    height,
    cellWide,
    cellHigh,
    at: Array.from({ length: count }, (_, i) => {
      const column = i % columns,
        row = Math.floor(i / columns);
      const left = (column * (cellWide + spaceX)) / inner,
        top = 1 - (row * (cellHigh + spaceY)) / height;
      return {
        x: [left, Math.min(1, left + cellWide / inner)],
        y: [Math.max(0, top - cellHigh / height), top],
        column,
      };
    }),
  };
}

// The figure as it describes a metric. Limits, center, reference lines and titles are those of its
// own metric, and say nothing about another one that a reader chose: where its sign changes, so
// does its hue.
function describe(drawing, facets, metric) {
  const figure = drawing.figure;
  if (metric === figure.metric) return figure;
  const title = spoken(metric);
  const titles = isGrid(figure.kind) ? { value_title: title } : { y_title: title };
  const shown = facets.flatMap((facet) => (facet.grid ? facet.grid.value.flat() : []));
  const center = shown.some((v) => v < 0) && shown.some((v) => v > 0) ? 0 : null;
  return { ...figure, limits: null, center, reference: {}, ...titles };
}

// Words on the x axis; none where it carries numbers.
function wordsOnX(figure, facets) {
  const found = isGrid(figure.kind)
    ? facets.flatMap((facet) => facet.grid.x)
    : facets.flatMap((facet) => facet.series.flatMap((series) => series.x));
  const worded = isGrid(figure.kind) || figure.kind === "bars";
  return [...new Set(found.filter((x) => worded || typeof x === "string"))].map(String);
}

// How many bars stand at one place, which is where several series have the same word.
function barsAtOnePlace(facets) {
  const counts = facets.flatMap((facet) => {
    const words = facet.series.flatMap((series) => series.x);
    return [...new Set(words)].map((word) => words.filter((other) => other === word).length);
  });
  return Math.max(...counts, 1);
}

// Room around the plot for ticks and titles, and below it for words that had to be tilted. Many
// bars whose words do not fit below them lie, each beside its word.
function room(figure, facets, width) {
  const narrow = width < NARROW;
  const grids = isGrid(figure.kind);
  const longest = (words) => 6.5 * Math.max(...words.map((word) => word.length), 2);
  const besideY = grids ? longest(facets.flatMap((facet) => facet.grid.y)) : 0;
  const titleY = figure.y_title ? 22 : 0;
  const left = grids ? Math.min(150, (narrow ? 12 : 20) + besideY + titleY) : 62;
  const right = grids ? (narrow ? 46 : 74) : 14;
  const words = wordsOnX(figure, facets);
  const columns = narrow ? 1 : Math.min(facets.length, figure.kind === "matrix" ? 2 : 3);
  const crowded = longest(words) + 2 > (width - left - right) / columns / words.length;
  const top = facets.some((facet) => facet.title) ? 34 : 14;
  if (figure.kind === "bars" && crowded && words.length > 8) {
    const beside = Math.min(190, 14 + longest(words) + (figure.x_title ? 26 : 0));
    const named = Object.keys(figure.reference).length ? NAMES : 0;
    return { margin: { l: beside, r: right, t: top + named, b: 56 }, tilt: 0, lying: true };
  }
  const tilt = words.length && crowded ? Math.min(96, 0.72 * longest(words)) : 0;
  return { margin: { l: left, r: right, t: top, b: 56 + tilt }, tilt, lying: false };
}

// The ends of the color scale.
function colorEnds(figure, facets) {
  if (figure.limits) return figure.limits;
  const all = facets.flatMap((facet) => facet.grid.value.flat()).filter(isKnown);
  if (!all.length) return [0, 1];
  if (figure.center !== null) {
    const reach = Math.max(...all.map((value) => Math.abs(value - figure.center)), 1e-9);
    return [figure.center - reach, figure.center + reach];
  }
  const ends = [Math.min(...all), Math.max(...all)];
  // One value throughout has no scale of its own.
  return ends[0] === ends[1] ? [Math.min(0, ends[0]), Math.max(1, ends[1])] : ends;
}

// The ends of the y axis, given outright: hiding a line then moves no axis.
function valueEnds(figure, facets) {
  if (isGrid(figure.kind) || figure.kind === "scatter") return null;
  if (figure.limits) return figure.limits;
  const drawn = facets.flatMap((facet) =>
    facet.series.flatMap((s) => [...s.y, ...s.low, ...s.high, ...s.null_low, ...s.null_high]),
  );
  return extent([...drawn, ...Object.values(figure.reference)], figure.kind === "bars");
}

// The two axes of facet `i`; facets of lines and bars share their scales.
function facetAxes(figure, facets, i, at, width, tilt, ends, lying) {
  const facet = facets[i];
  const grids = isGrid(figure.kind);
  const shared = !grids && figure.kind !== "scatter";
  const worded = wordsOnX(figure, [facet]).length > 0;
  const common = {
    zeroline: false,
    ticks: "outside",
    ticklen: 4,
    tickcolor: RULE,
    linecolor: "#aab2bb",
    gridcolor: GRID,
    automargin: false,
    showline: !grids,
    fixedrange: grids,
    tickfont: { size: width < NARROW ? 11 : 12, color: SOFT },
  };
  const x = {
    ...common,
    domain: at.x,
    anchor: axisName("y", i),
    showgrid: figure.kind === "scatter",
    unifiedhovertitle: { text: `<b>${plain(spoken(figure.x || ""))} %{x}</b>` },
  };
  const y = { ...common, domain: at.y, anchor: axisName("x", i), showgrid: !grids };
  if (worded) Object.assign(x, { type: "category", tickangle: tilt ? -45 : 0 });
  if (shared && i > 0) Object.assign(x, { matches: "x" });
  if (shared && i > 0) Object.assign(y, { matches: "y" });
  if (figure.kind === "lines" && !worded) Object.assign(x, wholeTicks(facet, width));
  if (figure.kind === "scatter") y.scaleanchor = axisName("x", i);
  const [alongWords, alongValues] = lying ? [y, x] : [x, y];
  if (ends) alongValues.range = ends;
  if (facet.order.length) {
    // The study's order, which the first line or group of bars need not show.
    const all = [-0.5, facet.order.length - 0.5];
    Object.assign(alongWords, { type: "category", categoryarray: facet.order.map(plain) });
    if (figure.kind === "bars") Object.assign(alongWords, { range: lying ? all.reverse() : all });
  }
  if (figure.kind === "bars") Object.assign(alongValues, { zeroline: true, zerolinecolor: SOFT });
  if (lying) Object.assign(x, { type: "linear", showgrid: true });
  if (lying) Object.assign(y, { showgrid: false, dtick: 1, ticks: "", tickangle: 0 });
  if (grids) {
    // Numbers grow upwards; words read from the top, as in a table.
    const upwards = facet.grid.y.every(isNumber);
    Object.assign(y, { type: "category", autorange: upwards ? true : "reversed" });
  }
  const repeated = grids ? facet.grid.y.join() === facets[0].grid.y.join() : shared;
  if (at.column > 0 && repeated) Object.assign(y, { showticklabels: false, ticks: "" });
  return { [layoutAxis("x", i)]: x, [layoutAxis("y", i)]: y };
}

// One tick a layer, where there are few enough of them.
function wholeTicks(facet, width) {
  const xs = facet.series.flatMap((series) => series.x);
  const low = Math.min(...xs);
  const high = Math.max(...xs);
  if (!xs.every(Number.isInteger) || high - low > 24) return {};
  return { dtick: high - low > 12 && width < NARROW ? 4 : 1, range: [low - 0.35, high + 0.35] };
}

const note = (text, at, more) => ({
  text: plain(text),
  showarrow: false,
  font: { size: 11.5, color: SOFT },
  ...at,
  ...more,
});

// Vertical marks such as attacked layers, and horizontal references; named in the first facet.
// Beside bars that lie, references are vertical.
function marksOf(figure, i, lying) {
  const x = axisName("x", i);
  const y = axisName("y", i);
  const byPlace = new Map();
  Object.entries(figure.marks).forEach(([name, place]) => {
    byPlace.set(place, [...(byPlace.get(place) || []), name]);
  });
  const line = { type: "line", layer: "below" };
  const shapes = [];
  const notes = [];
  [...(lying ? [] : byPlace)].forEach(([place, names], level) => {
    const refs = { xref: x, yref: `${y} domain` };
    const style = { color: SOFT, width: 1.2, dash: "dot" };
    shapes.push({ ...line, ...refs, x0: place, x1: place, y0: 0, y1: 1, line: style });
    const corner = { x: place, y: 1, xanchor: "left", yanchor: "top", xshift: 4 };
    const back = { yshift: -15 * level, bgcolor: "rgba(255,255,255,0.75)" };
    notes.push(note(names.join(", "), { ...refs, ...corner }, back));
  });
  Object.entries(figure.reference).forEach(([name, place]) => {
    const style = { color: SOFT, width: 1.2, dash: "dash" };
    if (lying) {
      const refs = { xref: x, yref: `${y} domain` };
      shapes.push({ ...line, ...refs, x0: place, x1: place, y0: 0, y1: 1, line: style });
      notes.push(note(name, { ...refs, x: place, y: 1, xanchor: "center", yanchor: "bottom" }));
      return;
    }
    const refs = { xref: `${x} domain`, yref: y };
    shapes.push({ ...line, ...refs, x0: 0, x1: 1, y0: place, y1: place, line: style });
    const end = { x: 1, y: place, xanchor: "right", yanchor: "bottom" };
    notes.push(note(name, { ...refs, ...end }, { bgcolor: "rgba(255,255,255,0.75)" }));
  });
  return { shapes, notes: i === 0 ? notes : [] };
}

// Titles of facets and axes.
function titlesOf(figure, facets, grid, margin, tilt, lying) {
  const onPaper = { xref: "paper", yref: "paper" };
  const ink = { font: { size: 13, color: INK } };
  const titles = facets
    .map((facet, i) => [facet.title, grid.at[i]])
    .filter(([title]) => title)
    .map(([title, at]) => {
      const above = { x: (at.x[0] + at.x[1]) / 2, y: at.y[1], xanchor: "center" };
      const yshift = lying && Object.keys(figure.reference).length ? NAMES : 6;
      return note(title, { ...onPaper, ...above, yanchor: "bottom", yshift }, ink);
    });
  titles.forEach((title) => {
    title.text = `<b>${title.text}</b>`;
  });
  const words = [figure.x_title, figure.y_title];
  const [below, beside] = lying ? words.reverse() : words;
  if (below) {
    const place = { x: 0.5, y: 0, xanchor: "center", yanchor: "top", yshift: -30 - tilt };
    titles.push(note(below, { ...onPaper, ...place }, ink));
  }
  if (beside) {
    const place = { x: 0, y: 0.5, xanchor: "right", yanchor: "middle", textangle: -90 };
    titles.push(note(beside, { ...onPaper, ...place, xshift: 26 - margin.l }, ink));
  }
  return titles;
}

function colorAxis(figure, ends, height, width) {
  const title = width < NARROW ? "" : plain(figure.value_title);
  return {
    cmin: ends[0],
    cmax: ends[1],
    colorscale: colorScale(ends, figure.center),
    colorbar: {
      thickness: 10,
      len: Math.min(1, 220 / height),
      outlinewidth: 0,
      tickfont: { size: 11.5, color: SOFT },
      x: 1.01,
      xpad: 4,
      title: { text: title, side: "right", font: { size: 12, color: SOFT } },
    },
  };
}

// The traces and layout of one panel at one width.
function plot(drawing, facets, width, metric) {
  const figure = describe(drawing, facets, metric);
  const grids = isGrid(figure.kind);
  const { margin, tilt, lying } = room(figure, facets, width);
  const abreast = figure.kind === "bars" ? barsAtOnePlace(facets) : 1;
  const lines = lying ? facets[0].order.length * (0.4 + 0.6 * abreast) : 1;
  const cells = (axis) => (grids ? facets[0].grid[axis].length : axis === "y" ? lines : 1);
  const around = margin.l + margin.r;
  const kind = lying ? "lying" : figure.kind;
  const grid = places(facets.length, kind, width, around, cells("x"), cells("y"), tilt);
  // One box with all lines is the comparison a reader wants, as long as it stays readable.
  const few = facets.every((facet) => facet.series.length <= 8);
  const unified = figure.kind === "lines" && few && !figure.hover.length;
  const ends = grids ? colorEnds(figure, facets) : valueEnds(figure, facets);
  const layout = {
    height: grid.height + margin.t + margin.b,
    width: grid.inner + around,
    margin,
    paper_bgcolor: "#ffffff",
    plot_bgcolor: "#ffffff",
    font: { family: FONT, size: 13, color: INK },
    showlegend: false,
    barmode: abreast > 1 ? "group" : "overlay",
    bargap: 0.25,
    // On a touch screen a drag scrolls the page.
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    hovermode: unified ? "x unified" : "closest",
    hoverlabel: {
      bgcolor: "#ffffff",
      bordercolor: RULE,
      font: { family: FONT, size: 12.5, color: INK },
      align: "left",
      namelength: -1,
    },
    annotations: titlesOf(figure, facets, grid, margin, tilt, lying),
    shapes: [],
  };
  if (grids) layout.coloraxis = colorAxis(figure, ends, grid.height, width);
  const allGrids = facets.map((facet) => facet.grid);
  const style = grids
    ? cellStyle(allGrids, grid.cellWide / cells("x"), grid.cellHigh / cells("y"))
    : null;
  const traces = [];
  const ranks = [];
  const nullsDrawn = new Set();
  facets.forEach((facet, i) => {
    const axes = { xaxis: axisName("x", i), yaxis: axisName("y", i) };
    const range = grids ? null : ends;
    Object.assign(layout, facetAxes(figure, facets, i, grid.at[i], width, tilt, range, lying));
    const marks = marksOf(figure, i, lying);
    layout.shapes.push(...marks.shapes);
    layout.annotations.push(...marks.notes);
    if (grids) {
      traces.push(...gridTraces(drawing, metric, facet.grid, axes, ends, figure.center, style));
      layout.shapes.push(...hatching(facet.grid, axes.xaxis, axes.yaxis));
    }
    // Bands that lie on each other add up, so each of many is paler.
    const nulls = new Set(facet.series.map((s) => JSON.stringify([s.null_low, s.null_high]))).size;
    const nullTint = Math.min(0.16, Math.max(0.03, 0.3 / nulls));
    const lineStyle = { unified, tint: few ? 0.13 : 0.07, nullTint, nullsDrawn };
    facet.series.forEach((series) => {
      const color = series.name.split(" · ")[0];
      if (!ranks.includes(color)) ranks.push(color);
      const rank = ranks.indexOf(color);
      const first = !traces.some((t) => t.legendgroup === series.name && t.showlegend);
      if (figure.kind === "lines")
        traces.push(...lineTraces(drawing, metric, series, axes, { rank, first, ...lineStyle }));
      if (figure.kind === "bars")
        traces.push(
          ...barTraces(drawing, metric, series, axes, { first, lying, alone: abreast === 1 }),
        );
      if (figure.kind === "scatter") traces.push(...scatterTraces(series, rank, axes, first));
    });
  });
  // Nulls lie under all lines, not only under those that follow them.
  const isNull = (trace) => Number(figure.kind === "lines" && trace.meta === "null");
  traces.sort((a, b) => isNull(b) - isNull(a));
  return { traces, layout };
}
