"use strict";
// The maps of the features. A map's data: points [x, y, x, y, ...] in a square, the place of each
// image in a sheet of pictures, labels and names.

const REACH = 14; // pixels between the pointer and a point that it shows
const MOST_ZOOM = 60;
const MOST_NAMES = 20; // classes that are named on the map
const sheets = JSON.parse(document.getElementById("sheets").textContent);

function colour(label, count) {
  // neighbours on the circle of hues are told apart by their lightness
  return `hsl(${(360 * label) / count} 65% ${[50, 63, 42][label % 3]}%)`;
}

function setUp(map) {
  const data = JSON.parse(map.querySelector("script").textContent);
  const canvas = map.querySelector("canvas");
  const tip = map.querySelector(".tip");
  const picture = map.querySelector(".picture");
  const words = map.querySelector(".words");
  const context = canvas.getContext("2d");
  const count = data.labels.length;
  const pointers = new Map();
  const view = { zoom: 1, x: data.side / 2, y: data.side / 2 }; // the centre, in map units
  let width, height, moved = 0, shown = -1;

  picture.style.backgroundImage = `url(${sheets[data.sheet]})`;
  picture.style.backgroundSize = `${100 * data.columns}% ${100 * data.lines}%`;

  const scale = () => (view.zoom * (Math.min(width, height) - 24)) / data.side;
  const across = (x) => width / 2 + (x - view.x) * scale();
  const down = (y) => height / 2 + (y - view.y) * scale();

  function draw() {
    const style = getComputedStyle(map);
    context.clearRect(0, 0, width, height);
    const radius = Math.min(7, 2.6 * Math.sqrt(view.zoom));
    for (let i = 0; i < count; i++) {
      context.fillStyle = colour(data.labels[i], data.classes.length);
      context.beginPath();
      context.arc(across(data.points[2 * i]), down(data.points[2 * i + 1]), radius, 0, 7);
      context.fill();
    }
    if (shown >= 0) {
      context.strokeStyle = style.color;
      context.lineWidth = 2;
      context.beginPath();
      context.arc(
        across(data.points[2 * shown]), down(data.points[2 * shown + 1]), radius + 2, 0, 7
      );
      context.stroke();
    }
    if (data.classes.length <= MOST_NAMES) drawNames(style);
  }

  function drawNames(style) {
    context.font = "600 14px system-ui, sans-serif";
    context.textAlign = "center";
    context.lineWidth = 4;
    context.strokeStyle = style.getPropertyValue("--card");
    context.fillStyle = style.color;
    data.classes.forEach((name, label) => {
      const middle = (offset) => {
        const values = [];
        for (let i = 0; i < count; i++)
          if (data.labels[i] === label) values.push(data.points[2 * i + offset]);
        return values.sort((a, b) => a - b)[values.length >> 1];
      };
      const x = middle(0);
      if (x === undefined) return;
      const text = name.length > 20 ? name.slice(0, 19) + "…" : name;
      context.strokeText(text, across(x), down(middle(1)) + 5);
      context.fillText(text, across(x), down(middle(1)) + 5);
    });
  }

  function show(x, y) {
    let best = -1, least = REACH * REACH;
    for (let i = 0; i < count; i++) {
      const distance =
        (across(data.points[2 * i]) - x) ** 2 + (down(data.points[2 * i + 1]) - y) ** 2;
      if (distance < least) [best, least] = [i, distance];
    }
    tip.hidden = best < 0;
    if (best >= 0) {
      const place = (i, of) => (of > 1 ? (100 * i) / (of - 1) : 0);
      const column = best % data.columns, line = Math.floor(best / data.columns);
      picture.style.backgroundPosition =
        `${place(column, data.columns)}% ${place(line, data.lines)}%`;
      const name = data.classes[data.labels[best]];
      words.textContent = [name, data.names[best]].filter(Boolean).join(" · ");
      tip.style.left = `${Math.max(0, Math.min(x + 14, width - tip.offsetWidth))}px`;
      const above = y - tip.offsetHeight - 10;
      tip.style.top = `${above < 0 ? y + 14 : above}px`;
    }
    if (best !== shown) {
      shown = best;
      draw();
    }
  }

  function zoomAt(x, y, factor) {
    const before = view.zoom, old = scale();
    view.zoom = Math.min(MOST_ZOOM, Math.max(1, before * factor));
    // what is under the pointer stays there
    view.x += (x - width / 2) * (1 / old - 1 / scale());
    view.y += (y - height / 2) * (1 / old - 1 / scale());
    settle();
    return view.zoom !== before;
  }

  function settle() {
    if (view.zoom === 1) view.x = view.y = data.side / 2;
    view.x = Math.min(data.side, Math.max(0, view.x));
    view.y = Math.min(data.side, Math.max(0, view.y));
    // one finger scrolls the page until there is something to move
    canvas.style.touchAction = view.zoom > 1 ? "none" : "pan-y";
    tip.hidden = true;
    shown = -1;
    draw();
  }

  function at(event) {
    const box = canvas.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  canvas.addEventListener("wheel", (event) => {
    const { x, y } = at(event);
    if (zoomAt(x, y, Math.exp(-event.deltaY / 300))) event.preventDefault();
  }, { passive: false });

  canvas.addEventListener("pointerdown", (event) => {
    if (event.isTrusted) canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, at(event));
    moved = 0;
  });

  canvas.addEventListener("pointermove", (event) => {
    const now = at(event), before = pointers.get(event.pointerId);
    if (!before) {
      show(now.x, now.y);
      return;
    }
    const other = [...pointers].find(([id]) => id !== event.pointerId);
    pointers.set(event.pointerId, now);
    moved += Math.abs(now.x - before.x) + Math.abs(now.y - before.y);
    if (other) {
      const to = other[1];
      const span = (from) => Math.hypot(from.x - to.x, from.y - to.y);
      zoomAt((now.x + to.x) / 2, (now.y + to.y) / 2, span(now) / Math.max(1, span(before)));
    } else if (view.zoom > 1) {
      view.x -= (now.x - before.x) / scale();
      view.y -= (now.y - before.y) / scale();
      settle();
    }
  });

  canvas.addEventListener("pointerup", (event) => {
    const { x, y } = at(event);
    if (pointers.size === 1 && moved < 6) show(x, y);
    pointers.delete(event.pointerId);
  });
  canvas.addEventListener("pointercancel", (event) => pointers.delete(event.pointerId));
  canvas.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") tip.hidden = true;
  });
  map.querySelector("button").addEventListener("click", () => {
    view.zoom = 1;
    settle();
  });

  function fit() {
    width = canvas.clientWidth;
    height = canvas.clientHeight;
    const dots = window.devicePixelRatio || 1;
    canvas.width = width * dots;
    canvas.height = height * dots;
    context.setTransform(dots, 0, 0, dots, 0, 0);
    settle();
  }
  new ResizeObserver(fit).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  fit();
}

document.querySelectorAll(".map").forEach(setUp);
