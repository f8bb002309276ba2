// Comfort on top of pages that work without: keys, zoom, light, the time of looking, and choices that survive a wrong click.
"use strict";
document.documentElement.classList.add("js");

addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });  // the back button shows what is saved now
document.addEventListener("DOMContentLoaded", () => {
  // a session that ends by itself keeps what was not saved; who signs out leaves no choice and no remark to the next
  document.querySelector("form[action='/sign-out']")?.addEventListener("submit", () => sessionStorage.clear());
  const act = {};  // what a button or a key does: {name: function}
  if (document.getElementById("stage")) viewer(act);
  if (document.getElementById("answer")) answering(act);
  const help = document.getElementById("help");
  if (help) act.help = () => help.open ? help.close() : help.showModal();
  for (const button of document.querySelectorAll("[data-do]")) button.addEventListener("click", () => act[button.dataset.do]());
  keys(act);
});

// Zoom, pan, brightness and contrast. Image and mask move together.
function viewer(act) {
  const stage = document.getElementById("stage"), picture = document.getElementById("picture");
  const images = [...stage.querySelectorAll("img")], shown = document.getElementById("zoom");
  const sliders = ["brightness", "contrast"].map((name) => document.getElementById(name));
  const view = {scale: 1, x: 0, y: 0};  // scale 1: the whole image fits; x, y: pixels of the screen off its middle
  const held = new Map();  // pointers that are down: {id: [x, y]}

  const pane = () => picture.parentElement.getBoundingClientRect();
  const fitted = () => Math.min(pane().width / picture.naturalWidth, pane().height / picture.naturalHeight) * devicePixelRatio;
  const most = () => Math.max(8, 32 / fitted());  // an image pixel on 32 of the screen

  function draw() {
    const {width, height} = pane();
    view.scale = Math.min(Math.max(view.scale, 1), most());
    const [right, down] = [(view.scale - 1) * width / 2, (view.scale - 1) * height / 2];
    view.x = Math.min(Math.max(view.x, -right), right);
    view.y = Math.min(Math.max(view.y, -down), down);
    for (const image of images) image.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
    stage.classList.toggle("zoomed", view.scale > 1);
    if (picture.naturalWidth) shown.textContent = `${Math.round(100 * view.scale * fitted())} %`;
  }
  function zoom(factor, x = 0, y = 0) {  // about a point, in pixels off the middle of its pane
    const former = view.scale;
    view.scale = Math.min(Math.max(former * factor, 1), most());
    view.x = x - (x - view.x) * view.scale / former;
    view.y = y - (y - view.y) * view.scale / former;
    draw();
  }
  function offMiddle(x, y, target) {
    const box = (target.closest(".pane") || picture.parentElement).getBoundingClientRect();
    return [x - box.left - box.width / 2, y - box.top - box.height / 2];
  }
  function light() {
    picture.style.filter = sliders.every((slider) => slider.value === "100") ? "" :
      `brightness(${sliders[0].value}%) contrast(${sliders[1].value}%)`;
  }
  const nudge = (slider, by) => { slider.value = Number(slider.value) + by; light(); };
  const pressed = (name, on) => document.querySelector(`[data-do=${name}]`)?.setAttribute("aria-pressed", on);
  function pixels(on) {
    stage.classList.toggle("pixels", on);
    pressed("pixels", on);
    localStorage.setItem("pixels", on ? "1" : "");
  }

  Object.assign(act, {
    in: () => zoom(1.25), out: () => zoom(1 / 1.25),
    fit: () => { Object.assign(view, {scale: 1, x: 0, y: 0}); draw(); },
    actual: () => { Object.assign(view, {scale: 1 / fitted(), x: 0, y: 0}); draw(); },
    reset: () => { for (const slider of sliders) slider.value = 100; light(); act.fit(); },
    pan: (x, y) => { view.x -= 60 * x; view.y -= 60 * y; draw(); },
    brighter: (by) => nudge(sliders[0], by), contrast: (by) => nudge(sliders[1], by),
    light: () => pressed("light", document.querySelector(".tools").classList.toggle("open")),
    pixels: () => pixels(!stage.classList.contains("pixels")),
    mask: () => { if (images.length > 1) { pressed("mask", !stage.classList.toggle("alone")); draw(); } },
  });
  for (const slider of sliders) slider.addEventListener("input", light);
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0015)), ...offMiddle(event.clientX, event.clientY, event.target));
  }, {passive: false});
  stage.addEventListener("dblclick", (event) => {
    if (view.scale > 1) act.fit(); else zoom(3, ...offMiddle(event.clientX, event.clientY, event.target));
  });
  stage.addEventListener("pointerdown", (event) => {
    held.set(event.pointerId, [event.clientX, event.clientY]);
    if (event.pointerType === "mouse") stage.setPointerCapture(event.pointerId);
    stage.classList.add("held");
  });
  stage.addEventListener("pointermove", (event) => {
    if (!held.has(event.pointerId)) return;
    const before = [...held.values()], now = [event.clientX, event.clientY];
    if (held.size === 1 && view.scale > 1) {
      view.x += now[0] - before[0][0];
      view.y += now[1] - before[0][1];
      draw();
    } else if (held.size === 2) {
      const other = [...held.entries()].find(([id]) => id !== event.pointerId)[1];
      const far = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);
      const middle = offMiddle((now[0] + other[0]) / 2, (now[1] + other[1]) / 2, event.target);
      zoom(far(now, other) / Math.max(far(held.get(event.pointerId), other), 1), ...middle);
    }
    held.set(event.pointerId, now);
  });
  for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
    stage.addEventListener(end, (event) => { held.delete(event.pointerId); stage.classList.toggle("held", held.size > 0); });
  }
  function gone() {
    stage.hidden = document.querySelector(".tools").hidden = true;
    document.getElementById("gone").hidden = false;
    document.getElementById("answer").hidden = document.getElementById("save").hidden = true;
  }
  picture.addEventListener("error", gone);
  picture.addEventListener("load", draw);
  if (picture.complete) { if (picture.naturalWidth) draw(); else gone(); }
  addEventListener("resize", draw);
  pixels(localStorage.getItem("pixels") === "1");
}

// The form: which question is marked, what is still open, a draft of what is not saved, and how long the image was looked at.
function answering(act) {
  const form = document.getElementById("answer"), hint = document.getElementById("hint"), remark = document.getElementById("remark");
  const axes = [...form.querySelectorAll(".axis")], draft = `draft ${form.dataset.draft}`;
  const time = `time of ${draft}`, seconds = document.getElementById("seconds");
  // of earlier looks that ended without a saved answer, in milliseconds
  let looked = Math.max(1000 * seconds.value, Number(sessionStorage.getItem(time)) || 0);
  let current = 0, since = document.hidden ? null : performance.now(), sent = false;

  const open = (axis) => !axis.querySelector(":checked");
  const mark = (number) => {
    current = Math.min(Math.max(number, 0), axes.length - 1);
    axes.forEach((axis, i) => axis.classList.toggle("current", i === current));
  };
  const fields = () => [...new FormData(form)].filter(([name]) => name.startsWith("score.") || name === "tag" || name === "remark");
  const keep = () => { sessionStorage.setItem(draft, JSON.stringify(fields())); hint.hidden = true; };

  Object.assign(act, {
    level: (number) => {
      const choice = axes[current].querySelector(`input[value="${number}"]`);
      if (!choice) return;
      choice.checked = true;
      axes[current].scrollIntoView({block: "nearest"});
      mark(current + 1);
      keep();
    },
    mark: (by) => { mark(current + by); axes[current].scrollIntoView({block: "nearest"}); },
    tag: (key) => { const box = form.querySelector(`.tag [data-key="${key}"]`); if (box) { box.checked = !box.checked; keep(); } },
    remark: () => remark.focus(),
    save: () => {
      const missing = axes.findIndex(open);
      if (missing < 0) return form.requestSubmit();
      mark(missing);
      hint.textContent = `Still to be answered: ${axes[missing].dataset.axis}.`;
      hint.hidden = false;
      hint.scrollIntoView({block: "nearest"});
    },
  });
  axes.forEach((axis, i) => axis.addEventListener("change", () => mark(open(axis) ? i : i + 1)));
  // a choice made by mouse or finger lets go of the field, so that arrow keys go on to other images instead of changing it
  form.addEventListener("click", (event) => { if (event.detail && event.target.matches("[type=radio], [type=checkbox]")) event.target.blur(); });
  form.addEventListener("input", keep);
  document.getElementById("save").addEventListener("click", (event) => {
    if (axes.some(open)) { event.preventDefault(); act.save(); }
  });
  const pause = () => {
    if (since !== null) { looked += performance.now() - since; since = null; }
    sessionStorage.setItem(time, looked);
  };
  addEventListener("pagehide", pause);
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) pause(); else if (since === null) since = performance.now();
  });
  form.addEventListener("submit", (event) => {
    if (sent) return event.preventDefault();
    sent = true;
    setTimeout(() => { sent = false; }, 5000);  // where the server does not answer, the same form may be sent again
    seconds.value = ((looked + (since === null ? 0 : performance.now() - since)) / 1000).toFixed(2);
  });

  const saved = JSON.stringify(fields()), before = sessionStorage.getItem(draft);
  if (before && before !== saved && !("given" in form.dataset)) {
    const values = JSON.parse(before);
    for (const box of form.querySelectorAll("[type=radio], [type=checkbox]")) {
      box.checked = values.some(([name, value]) => name === box.name && value === box.value);
    }
    remark.value = (values.find(([name]) => name === "remark") || ["", ""])[1];
    document.getElementById("draft").hidden = false;
  }
  mark(Math.max(axes.findIndex(open), 0));
  if (form.dataset.ahead) setTimeout(() => { new Image().src = form.dataset.ahead; }, 300);  // the next image is there at once
}

// One key each; none acts while somebody writes, holds ctrl, or has switched them off.
function keys(act) {
  const on = document.getElementById("keys-on");
  if (on) {
    on.checked = localStorage.getItem("keys") !== "off";
    on.addEventListener("change", () => localStorage.setItem("keys", on.checked ? "on" : "off"));
  }
  const single = {"+": "in", "=": "in", "-": "out", "0": "fit", o: "actual", i: "pixels", m: "mask", x: "reset", e: "remark", "?": "help"};
  const arrows = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};

  document.addEventListener("keydown", (event) => {
    const at = event.target, writes = at.matches("textarea, input:not([type=radio], [type=checkbox], [type=range])");
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && act.save) {
      event.preventDefault();
      if (!event.repeat) act.save();
      return;
    }
    if (writes) { if (event.key === "Escape") at.blur(); return; }
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (document.querySelector("dialog[open]")) { if (event.key === "?") { event.preventDefault(); act.help(); } return; }
    const own = at.matches("[type=range], [type=radio]") && event.key in arrows;  // a field reached by the tab key keeps its arrows
    if (own || (event.key === "Enter" && at.matches("a, button, summary")) || (on && !on.checked && event.key.length === 1 && event.key !== "?")) return;
    if (chosen(event)) event.preventDefault();
  });

  function chosen(event) {  // does what the key says; whether it says anything
    const {key} = event, small = key.length === 1 ? key.toLowerCase() : key;
    const link = (name) => document.querySelector(`a[data-key="${name}"]`);
    // a key that is held goes on zooming, moving and changing the light, and does all else once
    const once = !/^[-+=bc]$/i.test(key) && !(event.shiftKey && key in arrows);
    const run = (name, ...values) => {
      if (act[name] && !(once && event.repeat)) act[name](...values);
      return Boolean(act[name]);
    };
    if (key in arrows && event.shiftKey) return run("pan", ...arrows[key]);
    if (key === "ArrowUp" || key === "ArrowDown") return run("mark", arrows[key][1]);
    if (/^[1-9]$/.test(key)) return run("level", key);
    if (key === "Enter") return run("save");
    if (small === "b") return run("brighter", event.shiftKey ? -10 : 10);
    if (small === "c") return run("contrast", event.shiftKey ? -10 : 10);
    if (single[small]) return run(single[small]);
    if (link(small)) { if (!event.repeat) link(small).click(); return true; }
    return "asdfghjkl".includes(small) && run("tag", small);
  }
}
