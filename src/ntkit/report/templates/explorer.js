"use strict";
(async () => {
  const $ = (id) => document.getElementById("x-" + id);
  const meta = JSON.parse($("meta").textContent);
  const root = document.getElementById("explorer");
  if (typeof DecompressionStream === "undefined") return;  // the page is read without
  const SVG = "http://www.w3.org/2000/svg";
  const ZERO_TERMS = ["decay", "start", "buffers", "rounding", "residual"];
  const PAGE = 25;  // rows of the table at a time: all 2,000 take a browser half a second
  const byNumber = new Intl.Collator(undefined, { numeric: true }).compare;

  async function unpacked(text) {
    const packed = atob(text), bytes = new Uint8Array(packed.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = packed.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }
  const raw = await unpacked(meta.bytes);
  delete meta.bytes;
  const arrays = {};
  for (const [name, place] of Object.entries(meta.arrays)) {
    const size = place.shape.reduce((a, b) => a * b, 1);
    const whole = new Int16Array(size);
    for (let i = 0; i < size; i++) whole[i] = (raw[place.at + size + i] << 8) | raw[place.at + i];
    arrays[name] = { whole, scale: place.scale, width: place.shape[place.shape.length - 1], rows: place.scale.length };
  }
  const [Q, O, N] = meta.arrays.contributions.shape;
  function row(name, at) {
    const { whole, scale, width } = arrays[name];
    const out = new Float64Array(width);
    for (let i = 0; i < width; i++) out[i] = whole[at * width + i] * scale[at];
    return out;
  }
  const predicted = (q) => {
    const v = meta.terms.prediction[q];
    return v.indexOf(Math.max(...v));
  };
  const second = (q) => {
    const v = meta.terms.prediction[q], p = predicted(q);
    return v.reduce((best, x, i) => (i !== p && (best < 0 || x > v[best]) ? i : best), -1);
  };
  const state = { q: 0, o: "p", b: "", s: -1, sort: "size", search: "", label: "", sign: "", at: 0, from: 0, to: 0 };
  const WINDOWS = arrays.over_time.width;
  const found = meta.samples.map((name, i) => `${name} ${meta.labels[i]} ${meta.texts ? meta.texts[i] : ""}`.toLowerCase());
  state.to = WINDOWS;

  // an output is a number, "p" (the predicted one) or "m" (its margin over the second)
  const parts = (q, o) => o === "m" ? [[predicted(q), 1], [second(q), -1]] : [[o === "p" ? predicted(q) : +o, 1]];
  function along(name, q, o) {
    let out = null;
    for (const [j, sign] of parts(q, o)) {
      const r = row(name, q * O + j);
      if (!out) out = r; else for (let i = 0; i < r.length; i++) out[i] += sign * r[i];
    }
    return out;
  }
  const term = (name, q, o) => parts(q, o).reduce((sum, [j, sign]) => sum + sign * meta.terms[name][q][j], 0);
  const outputName = (q, o) =>
    o === "m" ? `${meta.outputs[q][predicted(q)]} over ${meta.outputs[q][second(q)]}` : meta.outputs[q][parts(q, o)[0][0]];

  const minus = (t) => t.replace(/-/g, "−");
  function signed(v) {
    if (!v) return "0";
    const a = Math.abs(v);
    const text = a >= 100 ? a.toFixed(0) : a >= 1 ? a.toFixed(2) : a >= 1e-3 ? a.toPrecision(2) : a.toExponential(1);
    return (v < 0 ? "−" : "+") + minus(text);
  }
  function el(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [k, v] of Object.entries(attributes || {})) {
      if (k.startsWith("on")) node.addEventListener(k.slice(2), v);
      else if (v !== null && v !== undefined) node.setAttribute(k, v);
    }
    node.append(...children.filter((c) => c !== null && c !== undefined));
    return node;
  }
  function svg(tag, attributes, text) {
    const node = document.createElementNS(SVG, tag);
    for (const [k, v] of Object.entries(attributes || {})) node.setAttribute(k, v);
    if (text !== undefined) node.textContent = text;
    return node;
  }
  const cut = (text, most) => text.length > most ? text.slice(0, most - 1) + "…" : text;

  function thumbnail(i, size, alt) {
    if (!meta.sprite) return null;
    const { columns } = meta.sprite;
    const box = el("span", { class: "thumb", role: "img", "aria-label": alt });
    box.style.cssText = `width:${size}px;height:${size}px;background-size:${columns * size}px auto;` +
      `background-position:${-(i % columns) * size}px ${-Math.floor(i / columns) * size}px`;
    return box;
  }

  function features(q, sample) {
    if (!meta.features) return null;
    const d = meta.features.length, lines = [];
    for (let j = 0; j < d; j++) {
      const { whole, scale, width } = arrays.features;
      const of = (i) => whole[j * width + i] * scale[j];
      const own = of(N + q), other = sample < 0 ? null : of(sample);
      lines.push([meta.features[j], own, other, other === null ? 0 : Math.abs(own - other) / (meta.spread[j] || 1)]);
    }
    if (sample >= 0) lines.sort((a, b) => a[3] - b[3]);
    const head = sample < 0 ? ["feature", "query"] : ["feature", "query", "sample", "apart, in deviations"];
    const body = lines.map(([name, own, other, apart]) => el("tr", {},
      el("th", { scope: "row" }, name), el("td", { class: "n" }, minus(own.toPrecision(4))),
      other === null ? null : el("td", { class: "n" }, minus(other.toPrecision(4))),
      other === null ? null : el("td", { class: "n" }, apart.toFixed(2))));
    const caption = sample < 0 ? "The query" : "Query and sample, nearest features first";
    return el("div", { class: "scroll features", tabindex: "0", role: "region", "aria-label": caption },
      el("table", {}, el("caption", {}, caption),
        el("thead", {}, el("tr", {}, ...head.map((t) => el("th", { scope: "col" }, t)))), el("tbody", {}, ...body)));
  }

  function waterfall(q, o) {
    const c = along("contributions", q, o), count = 4;
    const order = [...c.keys()].sort((a, b) => Math.abs(c[b]) - Math.abs(c[a])).slice(0, 2 * count);
    let rest = term("contributions", q, o);
    const steps = [["initial", term("initial", q, o), "total"]];
    for (const i of order) { steps.push([`${meta.samples[i]}${meta.labels[i] ? ", " + meta.labels[i] : ""}`, c[i], "part", i]); rest -= c[i]; }
    if (meta.of > order.length) steps.push([`${(meta.of - order.length).toLocaleString()} other samples`, rest, "part"]);
    const size = Math.abs(term("prediction", q, o) - term("initial", q, o));
    for (const name of ZERO_TERMS) {
      const v = term(name, q, o);
      if (Math.abs(v) > 1e-3 * size) steps.push([name, v, "part"]);
    }
    steps.push(["prediction", term("prediction", q, o), "total"]);
    let at = 0, low = 0, high = 0;
    const bars = steps.map(([name, v, kind, i]) => {
      const from = kind === "total" ? 0 : at, to = kind === "total" ? v : at + v;
      at = to; low = Math.min(low, from, to); high = Math.max(high, from, to);
      return { name, v, kind, i, from, to };
    });
    const W = Math.min(state.b === "" ? 640 : 470, width || 470), left = Math.min(190, 0.4 * W), right = 62, h = 22;
    const x = (v) => left + (v - low) / (high - low || 1) * (W - left - right);
    const said = bars.map((b) => `${b.name} ${signed(b.v)}`).join(", ");
    const pic = svg("svg", { viewBox: `0 0 ${W} ${bars.length * h + 6}`, role: "img", class: "waterfall",
      "aria-label": `${outputName(q, o)} in ${meta.unit}: ${said}` });
    pic.append(svg("line", { x1: x(0), x2: x(0), y1: 0, y2: bars.length * h, class: "axis" }));
    bars.forEach((b, k) => {
      const kind = b.kind === "total" ? "total" : b.v >= 0 ? "up" : "down";
      const bar = svg("rect", { x: Math.min(x(b.from), x(b.to)), y: k * h + 4, width: Math.max(1, Math.abs(x(b.to) - x(b.from))), height: h - 8, class: kind });
      bar.append(svg("title", {}, `${b.name}: ${signed(b.v)} ${meta.unit}`));
      pic.append(bar, svg("text", { x: left - 8, y: k * h + 15, "text-anchor": "end" }, cut(b.name, Math.floor(left / 6.8))),
        svg("text", { x: W - 2, y: k * h + 15, "text-anchor": "end", class: "value" }, signed(b.v)));
      if (b.i !== undefined) { bar.style.cursor = "pointer"; bar.addEventListener("click", () => set({ s: b.i })); }
    });
    return el("figure", {}, el("figcaption", {}, `${meta.queries[q]}: ${outputName(q, o)}, ${meta.unit}`), pic);
  }

  function time(q, o) {
    const w = along("over_time", q, o), W = 920, H = 150, pad = 8;
    const values = [term("initial", q, o)];
    for (const v of w) values.push(values[values.length - 1] + v);
    const ends = ZERO_TERMS.map((name) => [name, term(name, q, o)]).filter(([, v]) => v);
    let last = values[values.length - 1];
    const tail = ends.map(([name, v]) => { const from = last; last += v; return { name, v, from, to: last }; });
    const all = [0, ...values, ...tail.map((t) => t.to)], low = Math.min(...all), high = Math.max(...all);
    const x = (i) => i / WINDOWS * (W - 70), y = (v) => pad + (high - v) / (high - low || 1) * (H - 2 * pad);
    let chosen = 0;
    for (let i = state.from; i < state.to; i++) chosen += w[i];
    const step = (i) => Math.round(i * meta.steps / WINDOWS);
    const told = `Steps ${step(state.from) + (state.to > state.from ? 1 : 0)} to ${step(state.to)} of ${meta.steps} contributed ${signed(chosen)} ${meta.unit} of ${signed(term("contributions", q, o))}.`;
    const pic = svg("svg", { viewBox: `0 0 ${W} ${H}`, class: "time", role: "img", preserveAspectRatio: "none",
      "aria-label": `${outputName(q, o)} through training, from ${signed(values[0])} to the prediction ${signed(term("prediction", q, o))}. ${told}` });
    pic.append(svg("rect", { x: x(state.from), width: Math.max(1, x(state.to) - x(state.from)), y: 0, height: H, class: "brush" }),
      svg("line", { x1: 0, x2: W, y1: y(0), y2: y(0), class: "axis" }),
      svg("polyline", { points: values.map((v, i) => `${x(i)},${y(v)}`).join(" ") }));
    tail.forEach((t, k) => {
      const at = x(WINDOWS) + (k + 1) * 60 / (tail.length + 1);
      const line = svg("line", { x1: at, x2: at, y1: y(t.from), y2: y(t.to), class: "term" });
      line.append(svg("title", {}, `${t.name}: ${signed(t.v)}`));
      pic.append(line);
    });
    pic.append(svg("circle", { cx: W - 6, cy: y(term("prediction", q, o)), r: 4 }));
    let begin = null;
    const where = (e) => { const box = pic.getBoundingClientRect(); return Math.max(0, Math.min(WINDOWS, Math.round((e.clientX - box.left) / box.width * W / (W - 70) * WINDOWS))); };
    pic.addEventListener("pointerdown", (e) => { begin = where(e); });
    pic.addEventListener("pointerup", (e) => {
      if (begin === null) return;
      const end = where(e), [a, b] = begin < end ? [begin, end] : [end, begin];
      set(b > a ? { from: a, to: b } : { from: 0, to: WINDOWS });
    });
    const range = (name, value, label) => el("label", {}, label + " ", el("input", { type: "range", "data-key": `range ${name}`, min: 0, max: WINDOWS, value,
      "aria-valuetext": `step ${step(value)}`, onchange: (e) => {
        const v = +e.target.value;
        set(name === "from" ? { from: Math.min(v, state.to) } : { to: Math.max(v, state.from) });
      } }));
    const others = tail.length ? ` At the right end: ${tail.map((t) => `${t.name} ${signed(t.v)}`).join(", ")}.` : "";
    return el("figure", {}, el("figcaption", {}, `Through training (${meta.unit}); drag to choose steps. ${told}${others}`), pic,
      el("div", { class: "controls" }, range("from", state.from, "from"), range("to", state.to, "to")));
  }

  function listed() {
    const c = along("contributions", state.q, state.o);
    const e = arrays.effects ? along("effects", state.q, state.o) : null;
    const b = state.b === "" ? null : along("contributions", +state.b, state.o);
    const find = state.search.toLowerCase();
    let rows = [];
    for (let i = 0; i < N; i++) {
      if (state.label !== "" && meta.labels[i] !== state.label) continue;
      if (state.sign !== "" && Math.sign(c[i]) !== +state.sign) continue;
      if (find && !found[i].includes(find)) continue;
      rows.push({ i, c: c[i], e: e ? e[i] : 0, b: b ? b[i] : 0 });
    }
    const keys = {
      size: (a, z) => Math.abs(z.c) - Math.abs(a.c), contribution: (a, z) => z.c - a.c, least: (a, z) => a.c - z.c,
      effect: (a, z) => Math.abs(z.e) - Math.abs(a.e), beside: (a, z) => Math.abs(z.b) - Math.abs(a.b),
      sample: (a, z) => a.i - z.i,
      label: (a, z) => byNumber(meta.labels[a.i], meta.labels[z.i]) || a.i - z.i,
    };
    return rows.sort(keys[state.sort] || keys.size);
  }

  const turn = {};
  function table() {
    const rows = listed(), head = [["sample", "sample"], ["label", "label"], ["size", `contribution, ${meta.unit}`]];
    if (arrays.effects) head.push(["effect", "change if left out"]);
    if (state.b !== "") head.push(["beside", meta.queries[+state.b]]);
    const numeric = { size: 1, effect: 1, beside: 1 };
    $("table").tHead.replaceChildren(el("tr", {}, ...head.map(([key, text]) => {
      const down = state.sort === key || (key === "size" && state.sort === "contribution"), up = key === "size" && state.sort === "least";
      const sorted = key === "sample" || key === "label" ? (down ? "ascending" : "none") : down ? "descending" : up ? "ascending" : "none";
      const next = key !== "size" ? key : { size: "contribution", contribution: "least" }[state.sort] || "size";
      return el("th", { scope: "col", "aria-sort": sorted, class: numeric[key] ? "n" : null },
        el("button", { type: "button", "data-sort": key, "data-key": `sort ${key}`, onclick: () => set({ sort: next, at: 0 }) },
          text, sorted === "none" ? "" : sorted === "ascending" ? " ▲" : " ▼"));
    })));
    const last = Math.max(0, Math.ceil(rows.length / PAGE) - 1), at = Math.min(state.at, last), end = Math.min(rows.length, (at + 1) * PAGE);
    const largest = rows.reduce((m, r) => Math.max(m, Math.abs(r.c)), 1e-300);
    $("table").tBodies[0].replaceChildren(...rows.slice(at * PAGE, end).map((r) => {
      const bar = el("i", { class: r.c < 0 ? "down" : "up" });
      bar.style.width = `${Math.abs(r.c) / largest * 60}px`;
      const name = el("button", { type: "button", class: "link", "data-key": `sample ${r.i}`, onclick: () => set({ s: r.i }) },
        thumbnail(r.i, 28, meta.samples[r.i]), " ", meta.texts ? cut(meta.texts[r.i], 60) : meta.samples[r.i]);
      return el("tr", { class: r.i === state.s ? "chosen" : null }, el("th", { scope: "row" }, name), el("td", {}, meta.labels[r.i]),
        el("td", { class: "n" }, bar, " ", signed(r.c)),
        arrays.effects ? el("td", { class: "n" }, signed(r.e)) : null,
        state.b === "" ? null : el("td", { class: "n" }, signed(r.b)));
    }));
    const sum = rows.reduce((t, r) => t + r.c, 0);
    const left = meta.of > N ? ` The ${(meta.of - N).toLocaleString()} of ${meta.of.toLocaleString()} with the smallest contributions are not listed; they are summed in the diagram.` : "";
    $("count").textContent = `${rows.length.toLocaleString()} samples, ${signed(sum)} ${meta.unit} together.${left}`;
    $("pages").hidden = !last;
    $("rows").textContent = `${(at * PAGE + 1).toLocaleString()} to ${end.toLocaleString()} of ${rows.length.toLocaleString()}`;
    for (const [name, to] of Object.entries({ first: 0, earlier: at - 1, later: at + 1, last })) {
      turn[name] = to < 0 || to > last || to === at ? null : to;
      $(name).setAttribute("aria-disabled", turn[name] === null);
    }
  }

  function sample() {
    const s = state.s;
    if (s < 0) return $("sample").replaceChildren();
    const moved = [];
    const { whole, scale, width } = arrays.contributions;
    const added = (q) => parts(q, state.o).reduce((sum, [j, sign]) => sum + sign * whole[(q * O + j) * width + s] * scale[q * O + j], 0);
    for (let q = 0; q < Q; q++) moved.push([q, added(q)]);
    moved.sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
    const list = el("ol", {}, ...moved.slice(0, 12).map(([q, v]) => el("li", {},
      el("button", { type: "button", class: "link", "data-key": `query ${q}`, onclick: () => set({ q }) },
        thumbnail(N + q, 28, meta.queries[q]), ` ${meta.queries[q]} (${outputName(q, state.o)}) ${signed(v)}`))));
    const label = meta.labels[s] ? `, label ${meta.labels[s]}` : "";
    $("sample").replaceChildren(el("h3", {}, thumbnail(s, 56, meta.samples[s]), ` ${meta.samples[s]}${label}`),
      meta.texts ? el("blockquote", {}, meta.texts[s]) : "",
      el("p", {}, `The queries that it moved most (${meta.unit}):`), list, features(state.q, s) || "");
  }

  function odds(q) {
    if (!meta.odds) return "";
    const v = meta.terms.prediction[q], top = Math.max(...v);
    const e = v.map((x) => Math.exp(x - top)), all = e.reduce((a, b) => a + b, 0);
    const p = e[predicted(q)] / all;
    return `, ${p > 0.995 && p < 0.9995 ? (100 * p).toFixed(1) : (100 * p).toFixed(p > 0.9995 ? 2 : 0)} %`;
  }

  function sentence(q, o) {
    const c = along("contributions", q, o);
    let [up, ups, down, downs] = o === "m" ? [0, 0, 0, 0] : meta.toward[q][parts(q, o)[0][0]];
    if (o === "m") for (const v of c) { if (v > 0) { up += v; ups++; } else if (v < 0) { down += v; downs++; } }
    const truth = meta.truths[q] ? ` (truly ${meta.truths[q]})` : "";
    return `${outputName(q, o)}${o === "p" ? odds(q) : ""}${truth}: ${signed(up)} from ${ups.toLocaleString()} samples, ${signed(down)} from ${downs.toLocaleString()}.`;
  }

  let width = 0;
  const through = () => $("time").replaceChildren(time(state.q, state.o));
  const shown = () => {
    const q = state.q, text = meta.query_texts ? el("blockquote", {}, meta.query_texts[q]) : null;
    $("input").replaceChildren(...[thumbnail(N + q, 96, meta.queries[q]), text, state.s < 0 ? features(q, -1) : null].filter(Boolean));
  };
  function everything() {
    const { q, o, b } = state;
    shown();
    $("sentence").textContent = sentence(q, o);
    $("waterfall").replaceChildren(waterfall(q, o));
    $("waterfall-beside").replaceChildren(...(b === "" ? [] : [waterfall(+b, o)]));
    through();
    table();
    sample();
  }
  // what only some of the page depends on is drawn alone
  const PARTS = { sort: [table], search: [table], label: [table], sign: [table], at: [table], from: [through], to: [through], s: [shown, table, sample] };
  function draw(changes = { q: 0 }) {
    const { q, o, b } = state, held = document.activeElement?.dataset.key;
    const drawn = new Set(Object.keys(changes).flatMap((k) => PARTS[k] || [everything]));
    for (const one of drawn.has(everything) ? [everything] : drawn) one();
    $("query").value = q; $("output").value = o; $("beside").value = b;
    $("label").value = state.label; $("sign").value = state.sign;
    if ($("search").value !== state.search) $("search").value = state.search;
    if (held) root.querySelector(`[data-key="${held}"]`)?.focus({ preventScroll: true });  // what had it was drawn again
  }

  window.addEventListener("resize", () => { if (root.clientWidth !== width) { width = root.clientWidth; draw(); } });

  const KEPT = ["q", "o", "b", "s", "sort", "search", "label", "sign", "at", "from", "to"];
  const FIRST = { ...state };
  let own = "";
  function set(changes) {
    Object.assign(state, changes);
    const kept = KEPT.filter((k) => String(state[k]) !== String(FIRST[k])).map((k) => `${k}=${encodeURIComponent(state[k])}`);
    own = "#" + kept.join("&");
    try { history.replaceState(null, "", own); } catch { /* some viewers of files allow no links */ }
    draw(changes);
  }
  function read() {
    const given = new URLSearchParams(location.hash.slice(1));
    if (![...given.keys()].some((k) => KEPT.includes(k))) return;
    Object.assign(state, FIRST);
    const number = (k, low, high) => { const v = Number(given.get(k)); return given.has(k) && Number.isInteger(v) && v >= low && v <= high ? v : FIRST[k]; };
    state.q = number("q", 0, Q - 1); state.s = number("s", 0, N - 1);
    state.at = number("at", 0, Math.floor((N - 1) / PAGE));
    state.from = number("from", 0, WINDOWS); state.to = number("to", state.from, WINDOWS);
    for (const k of ["o", "b", "sort", "search", "label", "sign"]) if (given.has(k)) state[k] = given.get(k);
    const outs = [...$("output").options].map((v) => v.value), besides = [...$("beside").options].map((v) => v.value);
    if (!outs.includes(state.o)) state.o = FIRST.o;
    if (!besides.includes(state.b)) state.b = "";
  }

  function options(select, pairs) { select.replaceChildren(...pairs.map(([value, text]) => el("option", { value }, text))); }
  const queries = meta.queries.map((name, q) => [q, `${name}${meta.truths[q] ? ", " + meta.truths[q] : ""}`]);
  options($("query"), queries);
  options($("beside"), [["", "nothing"], ...queries]);
  const same = meta.outputs.every((names) => names.join("\n") === meta.outputs[0].join("\n"));
  const outputs = O === 1 ? [["p", same ? meta.outputs[0][0] : "the account's target"]]
    : [["p", "the predicted one"], ["m", "its margin over the second"], ...meta.outputs[0].map((name, j) => [j, same ? name : `output ${j}`])];
  options($("output"), outputs);
  const labels = [...new Set(meta.labels)].filter(Boolean).sort(byNumber);
  options($("label"), [["", "all"], ...(labels.length <= 200 ? labels.map((l) => [l, l]) : [])]);
  $("query").addEventListener("change", (e) => set({ q: +e.target.value }));
  $("output").addEventListener("change", (e) => set({ o: e.target.value }));
  $("beside").addEventListener("change", (e) => set({ b: e.target.value }));
  $("label").addEventListener("change", (e) => set({ label: e.target.value, at: 0 }));
  $("sign").addEventListener("change", (e) => set({ sign: e.target.value, at: 0 }));
  $("search").addEventListener("input", (e) => set({ search: e.target.value, at: 0 }));
  for (const name of ["first", "earlier", "later", "last"]) $(name).addEventListener("click", () => turn[name] === null || set({ at: turn[name] }));
  $("csv").addEventListener("click", () => {
    const quoted = (t) => { const s = String(t); return `"${(/^[=+@\t\r-]/.test(s) && Number.isNaN(Number(s)) ? "'" + s : s).replace(/"/g, '""')}"`; };
    const head = ["query", "output", "sample", "label", "contribution", ...(arrays.effects ? ["change if left out"] : []), ...(state.b === "" ? [] : [`contribution, ${meta.queries[+state.b]}`])];
    const lines = listed().map((r) => [meta.queries[state.q], outputName(state.q, state.o), meta.samples[r.i], meta.labels[r.i], r.c, ...(arrays.effects ? [r.e] : []), ...(state.b === "" ? [] : [r.b])].map(quoted).join(","));
    const link = el("a", { download: "contributions.csv", href: URL.createObjectURL(new Blob([[head.map(quoted).join(","), ...lines].join("\n") + "\n"], { type: "text/csv" })) });
    link.click();
  });
  document.addEventListener("keydown", (e) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(e.target.tagName);
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    if (e.key === "/" && !typing) { e.preventDefault(); $("search").focus(); }
    if (e.key === "Escape" && typing) e.target.blur();
    if (typing) return;
    if (e.key === "ArrowRight") set({ q: (state.q + 1) % Q });
    if (e.key === "ArrowLeft") set({ q: (state.q + Q - 1) % Q });
  });
  window.addEventListener("hashchange", () => { if (location.hash !== own) { read(); draw(); } });
  root.hidden = false;
  width = root.clientWidth;
  read();
  draw();
})();
