// A film of drawn frames, stepped by button, slider and key. One plain ES module with two lives: the live widget imports
// it and calls `render`; an exported page has it inlined, once a player, followed by a call of `comeAlive`. It asks for
// nothing from the network, and needs no kernel in either life.

const MILLISECONDS_A_FRAME = 1600; // time to read a caption
const ICONS = {
  first: "M3 2h2v12H3zM14 2v12L6 8z",
  back: "M11 1.5l1.8 1.8L8.1 8l4.7 4.7-1.8 1.8L4.5 8z",
  play: "M4 2l9 6-9 6z",
  pause: "M3 2h4v12H3zM9 2h4v12H9z",
  next: "M5 1.5L3.2 3.3 7.9 8l-4.7 4.7L5 14.5 11.5 8z",
  last: "M11 2h2v12h-2zM2 2v12l8-6z",
};
const CSS = `
.pc-player { max-width: 100%; box-sizing: border-box; padding: 8px; border-radius: 6px; font: 15px/1.4 system-ui, sans-serif; color: inherit; }
.pc-player-controls { display: flex; flex-wrap: wrap; align-items: center; gap: 4px; }
.pc-player button { display: inline-grid; place-items: center; width: 36px; height: 32px; padding: 0;
  border: 1px solid currentColor; border-radius: 4px; background: transparent; color: inherit; cursor: pointer; }
.pc-player button[hidden] { display: none; }
.pc-player button[aria-disabled="true"] { opacity: 0.4; cursor: default; }
.pc-player button svg { width: 16px; height: 16px; fill: currentColor; }
.pc-player input { flex: 1 1 160px; max-width: 420px; min-width: 100px; margin: 0 6px; accent-color: #2f8fd0; }
.pc-player-count { min-width: 4.5em; font-variant-numeric: tabular-nums; }
.pc-player-caption { min-height: 2.8em; max-width: 900px; margin: 6px 2px; }
.pc-player-view { overflow-x: auto; }
.pc-player-picture { width: 100%; }
.pc-player-picture svg { display: block; max-width: 100%; height: auto; }
.pc-player:focus-visible, .pc-player :focus-visible { outline: 3px solid #2f8fd0; outline-offset: -3px; }
`;

function render({ model, el }) {
  const film = model.get("film"); // title, css, width, least_width, height, captions, pieces, frames: see player.py
  const last = film.frames.length - 1;
  const mine = `pc${Math.random().toString(36).slice(2, 10)}-`; // several players stand on a page: their ids must differ
  const stillness = window.matchMedia("(prefers-reduced-motion: reduce)");
  let frame = 0;
  let timer = 0;

  const root = element("div", {
    class: "pc-player",
    role: "group",
    "aria-label": film.title,
    tabindex: "0",
    "data-frames": film.frames.length,
  });
  keepKeys(root);
  const style = element("style");
  style.textContent = CSS + film.css;
  const controls = element("div", { class: "pc-player-controls" });
  const first = button("first", "First step", () => go(0));
  const back = button("back", "One step back", () => go(frame - 1));
  const play = button("play", "Play", toggle);
  const next = button("next", "One step on", () => go(frame + 1));
  const end = button("last", "Last step", () => go(last));
  const scrub = element("input", { class: "pc-player-scrub", type: "range", min: 0, max: last, step: 1, "aria-label": "Step" });
  const count = element("span", { class: "pc-player-count", "aria-hidden": "true" });
  const caption = element("div", { class: "pc-player-caption", "aria-live": "polite" });
  const picture = element("div", { class: "pc-player-picture" });
  picture.style.maxWidth = `${film.width}px`;
  picture.style.minWidth = `${film.least_width}px`; // narrower, and its words could not be read
  picture.style.aspectRatio = `${film.width} / ${film.height}`; // of the largest frame: nothing jumps
  const view = element("div", { class: "pc-player-view" }); // scrolls what is wider than the page
  view.append(picture);
  controls.append(first, back, play, next, end, scrub, count);
  root.append(style, controls, caption, view);

  function show(index) {
    frame = Math.min(Math.max(index, 0), last);
    picture.replaceChildren(drawing(film, frame, mine));
    caption.textContent = film.captions[frame];
    count.textContent = `${frame + 1} of ${last + 1}`;
    scrub.value = frame;
    scrub.setAttribute("aria-valuetext", `${frame + 1} of ${last + 1}`);
    root.dataset.frame = frame;
    for (const each of [first, back]) each.setAttribute("aria-disabled", frame === 0);
    for (const each of [next, end]) each.setAttribute("aria-disabled", frame === last);
  }

  function turn(index) {
    show(index);
    model.set("frame", frame);
    model.save_changes();
  }

  function go(index) {
    pause();
    turn(index);
  }

  function pause() {
    clearInterval(timer);
    timer = 0;
    dress(play, "play", "Play");
  }

  function toggle() {
    if (timer) return pause();
    if (stillness.matches) return;
    if (frame === last) turn(0);
    dress(play, "pause", "Pause");
    timer = setInterval(() => {
      if (!root.isConnected || frame === last) return pause();
      turn(frame + 1);
      if (frame === last) pause();
    }, MILLISECONDS_A_FRAME);
  }

  function ask() {
    if (stillness.matches) pause();
    play.hidden = stillness.matches; // no motion for those who ask for none
  }

  const keys = { ArrowRight: () => go(frame + 1), ArrowLeft: () => go(frame - 1), Home: () => go(0), End: () => go(last) };
  root.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const press = event.key === " " && !event.target.closest("button") ? toggle : keys[event.key]; // a button has its own space
    if (!press) return;
    event.preventDefault(); // the page must not scroll, nor the slider step once more
    event.stopPropagation();
    if (press !== toggle || !event.repeat) press();
  });
  scrub.addEventListener("input", () => go(Number(scrub.value)));

  const follow = () => model.get("frame") !== frame && show(model.get("frame"));
  model.on("change:frame", follow); // set from Python, or by another view
  stillness.addEventListener("change", ask);
  ask();
  show(model.get("frame"));
  el.append(root);
  return () => {
    pause();
    model.off("change:frame", follow);
    stillness.removeEventListener("change", ask);
  };
}

// Frame number `index` as an <svg>: its pieces, which come in runs [first, how many, first, how many, ...] of the table.
function drawing(film, index, mine) {
  const runs = film.frames[index];
  let text = "";
  for (let i = 0; i < runs.length; i += 2) text += film.pieces.slice(runs[i], runs[i] + runs[i + 1]).join("");
  const svg = new DOMParser().parseFromString(text, "image/svg+xml").documentElement;
  svg.querySelector("style").remove(); // it would reach the whole page; film.css says the same for players alone
  for (const node of svg.querySelectorAll("[id]")) node.id = mine + node.id;
  for (const node of svg.querySelectorAll("[fill^='url(#']")) {
    node.setAttribute("fill", node.getAttribute("fill").replace("#", `#${mine}`));
  }
  return svg;
}

function element(name, attributes = {}) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function button(name, words, press) {
  const made = element("button", { class: `pc-player-${name}`, type: "button" });
  made.addEventListener("click", press);
  dress(made, name, words);
  return made;
}

function dress(made, icon, words) {
  made.innerHTML = `<svg viewBox="0 0 16 16" aria-hidden="true"><path d="${ICONS[icon]}"/></svg>`;
  made.setAttribute("aria-label", words);
  made.title = words;
}

// In an exported page: the still picture with the class `still` gives way to the player. The same player may stand there
// several times; each call takes the first that has not come alive yet.
function comeAlive(still, film, frame) {
  const place = document.querySelector(`.${still}`);
  if (!place) return;
  const state = { film, frame };
  const model = {
    get: (name) => state[name],
    set: (name, value) => (state[name] = value),
    on() {},
    off() {},
    save_changes() {},
  };
  const el = document.createElement("div");
  render({ model, el });
  place.replaceWith(el);
}

export default { render };
