"use strict";
const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
const tip = document.getElementById("tip");

// The links to the sections.
const list = document.querySelector("nav ul");
for (const section of all("main > section")) {
  const link = document.createElement("a");
  link.href = `#${section.id}`;
  link.textContent = section.querySelector("h2").textContent;
  list.appendChild(document.createElement("li")).appendChild(link);
}

// Tables: a click on a head sorts by its column; a second click reverses the order.
const number = (text) => parseFloat(text.replace(/,/g, ""));
for (const table of all("table.sortable")) {
  const heads = all("thead th", table);
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
      const text = (row) => row.cells[column].textContent;
      const compare = (a, b) => {
        const [x, y] = [number(text(a)), number(text(b))];
        if (isNaN(x) && isNaN(y)) return sign * text(a).localeCompare(text(b));
        return isNaN(x) ? 1 : isNaN(y) ? -1 : sign * (x - y);
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    });
  });
}

// The text beside a place of a chart.
function show(text, svg, x, y, picture) {
  tip.textContent = text;
  if (picture) tip.append(picture);
  tip.hidden = false;
  const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width;
  const left = box.left + x * scale, top = box.top + y * scale;
  const right = left + 14 + tip.offsetWidth < innerWidth;
  tip.style.left = `${Math.max(4, right ? left + 14 : left - 14 - tip.offsetWidth)}px`;
  tip.style.top = `${Math.max(4, Math.min(innerHeight - tip.offsetHeight - 4, top - tip.offsetHeight / 2))}px`;
}

function draw(svg, name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) element.setAttribute(key, attributes[key]);
  return svg ? svg.appendChild(element) : element;
}

// What the pointer, a finger and the keys do on a chart: ``at`` takes a place, ``move`` a number of steps.
function explore(svg, at, move) {
  const clear = () => { tip.hidden = true; all(".here", svg).forEach((mark) => mark.remove()); };
  const place = (event) => {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    clear();
    at((event.clientX - box.left) * scale, (event.clientY - box.top) * scale);
  };
  svg.addEventListener("pointermove", place);
  svg.addEventListener("pointerdown", place);
  svg.addEventListener("pointerleave", clear);
  svg.addEventListener("blur", clear);
  svg.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, Home: -1e9, End: 1e9 }[event.key];
    if (event.key === "Escape") clear();
    if (steps === undefined) return;
    event.preventDefault();
    clear();
    move(steps);
  });
}

// Curves: the numbers of all lines at an epoch.
for (const chart of all("[data-chart]")) {
  const svg = chart.querySelector("svg"), data = JSON.parse(chart.dataset.chart);
  const scale = ([low, high, start, end], value) => start + (value - low) / (high - low) * (end - start);
  const epochs = [...new Set(data.series.flatMap((line) => line.x))].sort((a, b) => a - b);
  let index = epochs.length - 1;
  const mark = () => {
    const epoch = epochs[index], texts = [`epoch ${epoch}`];
    let last = data.y[3];
    for (const line of data.series) {
      const value = line.y[line.x.indexOf(epoch)];
      if (value === undefined || value === null) continue;
      texts.push(`${line.name}: ${value.toPrecision(5)}`);
      last = Math.min(data.y[2], Math.max(data.y[3], scale(data.y, value)));
      draw(svg, "circle", { class: "here", cx: scale(data.x, epoch), cy: last, r: 4 });
    }
    show(`${texts.join("\n")}\n${data.unit}`, svg, scale(data.x, epoch), last);
  };
  const nearest = (x) => epochs.reduce((best, epoch, i) =>
    Math.abs(scale(data.x, epoch) - x) < Math.abs(scale(data.x, epochs[best]) - x) ? i : best, 0);
  explore(svg, (x) => { index = nearest(x); mark(); },
    (steps) => { index = Math.max(0, Math.min(epochs.length - 1, index + steps)); mark(); });
}

// Codes: the label, the number and the image of a point; a label of the legend keeps its points.
for (const chart of all(".points")) {
  const svg = chart.querySelector("svg"), points = all("circle.point", svg), buttons = all("button", chart);
  const places = points.map((point) => [point.cx.baseVal.value, point.cy.baseVal.value]);
  let index = 0;
  const mark = () => {
    const point = points[index], [x, y] = places[index], { sprite, columns, width, height } = chart.dataset;
    const label = buttons.length ? `label ${buttons[point.dataset.kind].textContent}, ` : "";
    draw(svg, "circle", { class: "here", cx: x, cy: y, r: 5 });
    let picture = null;
    if (sprite) {
      const corner = [index % columns * width, Math.floor(index / columns) * height];
      picture = draw(null, "svg", { viewBox: `${corner.join(" ")} ${width} ${height}` });
      draw(picture, "use", { href: `#${sprite}` });
    }
    show(`${label}test datum ${point.dataset.row}`, svg, x, y, picture);
  };
  const shown = (i) => !svg.classList.contains("faint") || points[i].classList.contains("chosen");
  explore(svg, (x, y) => {
    const distance = places.map(([a, b], i) => shown(i) ? Math.hypot(a - x, b - y) : Infinity);
    index = distance.indexOf(Math.min(...distance));
    if (distance[index] < 25) mark();
  }, (steps) => { index = Math.max(0, Math.min(points.length - 1, index + steps)); mark(); });
  for (const button of buttons) {
    button.addEventListener("click", () => {
      const pressed = button.getAttribute("aria-pressed") !== "true";
      buttons.forEach((other) => other.setAttribute("aria-pressed", other === button && pressed));
      svg.classList.toggle("faint", pressed);
      points.forEach((point) => point.classList.toggle("chosen", point.dataset.kind === button.dataset.kind));
    });
  }
}

// Tiles: a slider chooses a column of the sprite, a radio button the row.
function place(tile, column, row) {
  const { width, height } = tile.viewBox.baseVal;
  tile.dataset.column = column ?? tile.dataset.column;
  tile.dataset.row = row ?? tile.dataset.row;
  tile.setAttribute("viewBox", `${tile.dataset.column * width} ${tile.dataset.row * height} ${width} ${height}`);
}
for (const slider of all(".dimension input")) {
  const box = slider.closest(".dimension"), tile = box.querySelector(".tile"), { span, name } = slider.dataset;
  const move = () => {
    place(tile, slider.value);
    const text = `${(span * (2 * slider.value / slider.max - 1)).toFixed(1)} sd`;
    box.querySelector("output").textContent = text;
    slider.setAttribute("aria-valuetext", text);
    tile.setAttribute("aria-label", `Decoded image at ${name} = ${text}`);
  };
  slider.addEventListener("input", move);
  move();
}
for (const radio of all(".chooser input[type=radio]")) {
  const choose = () => all(".tile", radio.closest(".chooser")).forEach((tile) => place(tile, undefined, radio.value));
  radio.addEventListener("change", choose);
  if (radio.checked) choose();
}

// Paper: all details are open, and a dimension shows all its images in a row.
const open = new Set();
addEventListener("beforeprint", () => {
  all("details:not([open])").forEach((details) => { open.add(details); details.open = true; });
  for (const tile of all(".dimension .tile")) {
    const { width, height } = tile.viewBox.baseVal, steps = +tile.closest(".dimension").querySelector("input").max + 1;
    tile.setAttribute("viewBox", `0 ${tile.dataset.row * height} ${width * steps} ${height}`);
    tile.dataset.width = width;
  }
});
addEventListener("afterprint", () => {
  open.forEach((details) => { details.open = false; });
  open.clear();
  for (const tile of all(".dimension .tile")) {
    const { height } = tile.viewBox.baseVal, { column, row, width } = tile.dataset;
    tile.setAttribute("viewBox", `${column * width} ${row * height} ${width} ${height}`);
  }
});
