// Controls around each figure: drop-downs, legend, numbers as a table, download.
"use strict";

const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  Object.entries(attributes).forEach(([name, value]) =>
    name === "text" ? (element.textContent = value) : element.setAttribute(name, value),
  );
  element.append(...children);
  return element;
};

function swatch(kind, color, dash, rank) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 26 12");
  svg.setAttribute("aria-hidden", "true");
  const add = (tag, attributes) => {
    const part = document.createElementNS(svg.namespaceURI, tag);
    Object.entries(attributes).forEach(([name, value]) => part.setAttribute(name, value));
    svg.append(part);
  };
  if (kind === "bars") add("rect", { x: 6, y: 1, width: 12, height: 10, fill: color });
  if (kind === "lines")
    add("line", {
      x1: 0,
      x2: 26,
      y1: 6,
      y2: 6,
      stroke: color,
      "stroke-width": 2,
      "stroke-dasharray": ["", "6 4", "2 3", "6 3 2 3", "10 4"][dash % 5],
    });
  const fill = { fill: dash ? "#ffffff" : color, stroke: color, "stroke-width": 1.4 };
  const shapes = [
    ["circle", { cx: 13, cy: 6, r: 3.6 }],
    ["path", { d: "M9.6 2.6h6.8v6.8h-6.8z" }],
    ["path", { d: "M13 1.6 17.4 6 13 10.4 8.6 6z" }],
    ["path", { d: "M13 2 17 9.4H9z" }],
    ["path", { d: "M13 10 17 2.6H9z" }],
    ["path", { d: "M11.6 2h2.8v2.6H17v2.8h-2.6V10h-2.8V7.4H9V4.6h2.6z" }],
    ["path", { d: "M10.2 1.2 13 4l2.8-2.8 2 2L15 6l2.8 2.8-2 2L13 8l-2.8 2.8-2-2L11 6 8.2 3.2z" }],
    ["path", { d: "M13 .8 14.6 4.4 18.2 6l-3.6 1.6L13 11.2l-1.6-3.6L7.8 6l3.6-1.6z" }],
  ];
  const [tag, place] = shapes[(kind === "scatter" ? rank * 2 : rank) % shapes.length];
  if (kind !== "bars") add(tag, { ...place, ...fill });
  return svg;
}

class FigureView {
  constructor(root, drawing) {
    this.root = root;
    this.drawing = drawing;
    this.hidden = new Set();
    this.target = root.querySelector(".plot");
    this.legend = root.querySelector(".legend");
    this.status = root.querySelector(".status");
    this.selects = this.addSelects();
    this.addDownloads();
    root.querySelector("details.numbers").addEventListener("toggle", () => this.writeNumbers());
    this.draw();
  }

  addSelects() {
    const controls = this.root.querySelector(".controls");
    return this.drawing.choices.map((choice, i) => {
      const select = make("select", { id: `${this.root.id}-choice-${i}` });
      choice.options.forEach((option, number) =>
        select.append(
          make("option", {
            value: number,
            text: choice.name === "metric" ? spoken(option) : option,
          }),
        ),
      );
      select.value = String(choice.start);
      select.addEventListener("change", () => this.draw());
      controls.append(
        make(
          "span",
          { class: "control" },
          make("label", { for: select.id, text: spoken(choice.name) }),
          select,
        ),
      );
      return select;
    });
  }

  addDownloads() {
    const bar = this.root.querySelector(".downloads");
    ["svg", "png"].forEach((format) => {
      const button = make("button", {
        type: "button",
        class: "quiet",
        text: format.toUpperCase(),
        "aria-label": `Download this figure as ${format.toUpperCase()}`,
      });
      button.addEventListener("click", () => this.download(format));
      bar.append(button);
    });
  }

  get panel() {
    return this.drawing.panels[this.selects.map((select) => select.value).join(",")];
  }

  get metric() {
    const i = this.drawing.choices.findIndex((choice) => choice.name === "metric");
    return i < 0
      ? this.drawing.figure.metric
      : this.drawing.choices[i].options[this.selects[i].value];
  }

  said() {
    return this.drawing.choices
      .map((choice, i) => `${spoken(choice.name)} ${choice.options[this.selects[i].value]}`)
      .join(", ");
  }

  // What is shown now, laid out for a width; hidden lines stay hidden.
  plotAt(width) {
    const { traces, layout } = plot(this.drawing, this.panel, width, this.metric);
    traces.forEach((trace) => {
      if (this.hidden.has(trace.legendgroup)) trace.visible = false;
    });
    return { traces, layout };
  }

  draw() {
    const facets = this.panel;
    this.target.hidden = this.legend.hidden = !facets;
    this.status.textContent = facets
      ? ""
      : `${this.said()}: no rows in this page (metrics.parquet holds all that were measured).`;
    this.status.classList.toggle("empty", !facets);
    this.root.querySelector(".chosen").textContent = this.said();
    if (!facets) return;
    const width = Math.max(280, Math.floor(this.root.clientWidth));
    const { traces, layout } = this.plotAt(width);
    Plotly.react(this.target, traces, layout, {
      displayModeBar: false,
      responsive: false,
      doubleClick: "reset",
    });
    this.target.setAttribute(
      "aria-label",
      `${this.drawing.figure.title}${this.said() ? `; ${this.said()}` : ""}. The numbers are in the table below the figure.`,
    );
    this.writeLegend(facets);
    this.writeNumbers();
  }

  writeLegend(facets) {
    const known = new Map();
    facets.forEach((facet) =>
      facet.series.forEach((series) => {
        if (series.name && !known.has(series.name)) known.set(series.name, series);
      }),
    );
    const focused = this.legend.contains(document.activeElement)
      ? document.activeElement.dataset.name
      : null;
    this.legend.replaceChildren();
    const colors = [];
    known.forEach((series, name) => {
      const color = name.split(" · ")[0];
      if (!colors.includes(color)) colors.push(color);
      const button = make(
        "button",
        { type: "button", "aria-pressed": String(!this.hidden.has(name)), title: "Show or hide" },
        swatch(this.drawing.figure.kind, series.color, series.dash, colors.indexOf(color)),
        make("span", { text: name }),
      );
      button.dataset.name = name;
      button.addEventListener("click", () => {
        this.hidden.has(name) ? this.hidden.delete(name) : this.hidden.add(name);
        this.draw();
      });
      this.legend.append(button);
      if (name === focused) button.focus();
    });
    const series = facets.flatMap((facet) => facet.series);
    const key = (kind, words) =>
      this.legend.append(make("span", { class: "key" }, make("i", { class: kind }), words));
    if (
      this.drawing.figure.kind === "lines" &&
      series.some((s) => s.low.some((v) => v !== null)) &&
      typeof series[0].x[0] === "number"
    )
      key("band", "95 % interval");
    if (this.drawing.figure.kind === "bars" && series.some((s) => s.low.some((v) => v !== null)))
      key("whisker", "95 % interval");
    if (series.some((s) => s.null_low.length))
      key(this.drawing.figure.kind === "bars" ? "hatch" : "null", "null range");
    if (this.target.data.some((trace) => trace.meta === "missing")) key("missing", "not measured");
  }

  writeNumbers() {
    const details = this.root.querySelector("details.numbers");
    if (!details.open || !this.panel) return;
    const figure = this.drawing.figure,
      rows = [];
    this.panel.forEach((facet) => {
      facet.series.forEach((s) =>
        s.x.forEach((x, i) =>
          rows.push([
            facet.title,
            s.name,
            x,
            s.y[i],
            s.low[i],
            s.high[i],
            s.n[i],
            s.null_low[i],
            s.null_high[i],
            ...(s.extra[i] || []),
          ]),
        ),
      );
      if (facet.grid)
        facet.grid.value.forEach((row, j) =>
          row.forEach((value, i) => {
            if (!isKnown(facet.grid.n[j][i])) return;
            rows.push([
              facet.title,
              facet.grid.y[j],
              facet.grid.x[i],
              value,
              facet.grid.low[j][i],
              facet.grid.high[j][i],
              facet.grid.n[j][i],
              null,
              null,
              ...((facet.grid.extra[j] || [])[i] || []),
            ]);
          }),
        );
    });
    const names = [
      figure.facet || "panel",
      figure.y || [figure.color, figure.dash].filter(Boolean).join(" · ") || "series",
      figure.x || "x",
      figure.kind === "scatter" ? "y" : this.metric,
      "95 % low",
      "95 % high",
      "n",
      "null low",
      "null high",
      ...figure.hover,
    ];
    const used = names.map((_, column) =>
      rows.some((row) => row[column] !== null && row[column] !== undefined && row[column] !== ""),
    );
    if (figure.kind === "scatter") used[6] = false;
    const head = make(
      "tr",
      {},
      ...names
        .filter((_, i) => used[i])
        .map((name) => make("th", { scope: "col", text: spoken(name) })),
    );
    const body = rows.slice(0, 300).map((row) =>
      make(
        "tr",
        {},
        ...names.flatMap((_, i) =>
          used[i]
            ? [
                make("td", {
                  text:
                    row[i] === null || row[i] === undefined
                      ? "—"
                      : String(row[i]).replace(/^-/, "−"),
                  ...(i > 1 ? { class: "number" } : {}),
                }),
              ]
            : [],
        ),
      ),
    );
    const counted =
      rows.length > 300
        ? `First 300 of ${rows.length} rows.`
        : `${rows.length} rows${this.said() ? `: ${this.said()}` : ""}.`;
    details
      .querySelector("div")
      .replaceChildren(
        make("p", { class: "small", text: counted }),
        make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)),
      );
  }

  async download(format) {
    // The same picture whatever screen it is downloaded from.
    const { traces, layout } = this.plotAt(1060);
    const figure = this.drawing.figure;
    const said = this.said() ? `<br><span style="font-size:12px">${plain(this.said())}</span>` : "";
    const withLegend = {
      ...layout,
      height: layout.height + 110,
      margin: { ...layout.margin, t: layout.margin.t + 54, b: layout.margin.b + 40 },
      title: {
        text: `${plain(figure.title)}${said}`,
        x: 0,
        xanchor: "left",
        y: 1,
        yref: "container",
        yanchor: "top",
        pad: { t: 18, l: 14 },
        font: { size: 17 },
      },
      showlegend: traces.some((t) => t.showlegend),
      legend: { orientation: "h", y: 0, yref: "container", yanchor: "bottom", x: 0 },
    };
    const named = traces.map((trace) => ({ ...trace, name: plain(trace.name || "") }));
    const url = await Plotly.toImage(
      { data: named, layout: withLegend },
      {
        format,
        width: withLegend.width,
        height: withLegend.height,
        scale: format === "png" ? 2 : 1,
      },
    );
    make("a", { href: url, download: `${figure.id.replace(/[^\w-]+/g, "_")}.${format}` }).click();
  }
}

// One figure at a time, so that a page of many can be read and scrolled while it is drawn.
const views = [];
function drawNext([root, ...rest]) {
  if (!root) {
    document.documentElement.dataset.drawn = String(views.length);
    return;
  }
  const drawing = JSON.parse(document.getElementById(root.dataset.drawing).textContent);
  views.push(new FigureView(root, drawing));
  setTimeout(drawNext, 0, rest);
}
drawNext([...document.querySelectorAll("figure[data-drawing]")]);

let waiting;
let lastWidth = document.documentElement.clientWidth;
window.addEventListener("resize", () => {
  // A phone's address bar changes the height alone, which must not redraw everything.
  if (document.documentElement.clientWidth === lastWidth) return;
  lastWidth = document.documentElement.clientWidth;
  clearTimeout(waiting);
  waiting = setTimeout(() => views.forEach((view) => view.draw()), 120);
});
window.matchMedia("print").addEventListener("change", () => views.forEach((view) => view.draw()));
