// Moving over a picture: mouse, touch and keys change where it is drawn and how large.

import { byId } from "report/dom.js";

const LEAST = 0.02;
const MOST = 4;
const STEP = 1.3;

/** Pan and zoom of the `world` group inside an svg `canvas`; `changed` is called after a move. */
export class View {
  constructor(canvas, world, changed) {
    Object.assign(this, { canvas, world, changed, x: 0, y: 0, k: 1, pointers: new Map(), dragged: false });
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel", "pointerleave"])
      canvas.addEventListener(name, (event) => this.pointers.delete(event.pointerId));
  }

  get width() {
    return this.canvas.clientWidth;
  }

  get height() {
    return this.canvas.clientHeight;
  }

  show(x, y, k) {
    Object.assign(this, { x, y, k: Math.min(MOST, Math.max(LEAST, k)) });
    this.world.setAttribute("transform", `translate(${this.x} ${this.y}) scale(${this.k})`);
    this.changed(this);
  }

  /** Go there smoothly, at once where motion is not wanted. */
  glide(x, y, k) {
    cancelAnimationFrame(this.frame);
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return this.show(x, y, k);
    const from = { x: this.x, y: this.y, k: this.k };
    const begun = performance.now();
    const step = (now) => {
      const part = Math.min(1, (now - begun) / 220);
      const eased = part * (2 - part);
      const mix = (a, b) => a + (b - a) * eased;
      this.show(mix(from.x, x), mix(from.y, y), mix(from.k, k));
      if (part < 1) this.frame = requestAnimationFrame(step);
    };
    this.frame = requestAnimationFrame(step);
    return undefined;
  }

  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const k = Math.min(MOST, Math.max(LEAST, this.k * factor));
    const ratio = k / this.k;
    this.show(x - (x - this.x) * ratio, y - (y - this.y) * ratio, k);
  }

  pan(x, y) {
    this.show(this.x + x, this.y + y, this.k);
  }

  /** Show a rectangle of the world, at most at scale `most`, at least at `least`: then from its top. */
  fit({ x, y, width, height }, { margin = 24, most = 1.2, least = 0, smooth = true } = {}) {
    const whole = Math.min((this.width - 2 * margin) / width, (this.height - 2 * margin) / height);
    const k = Math.min(most, Math.max(whole, least));
    const top = height * k > this.height - 2 * margin ? margin - y * k : (this.height - height * k) / 2 - y * k;
    const place = [(this.width - width * k) / 2 - x * k, top, k];
    if (smooth) this.glide(...place);
    else this.show(...place);
  }

  /** The point of the world in the middle. */
  middle() {
    return { x: (this.width / 2 - this.x) / this.k, y: (this.height / 2 - this.y) / this.k };
  }

  /** The wheel zooms once the graph has been clicked; before that it scrolls the page. */
  wheel(event) {
    if (!event.ctrlKey && document.activeElement !== this.canvas && !this.canvas.closest(".whole")) return this.told();
    event.preventDefault();
    cancelAnimationFrame(this.frame);
    const box = this.canvas.getBoundingClientRect();
    const scale = event.deltaMode === 1 ? 20 : 1;
    if (event.shiftKey) this.pan(-event.deltaY * scale, 0);
    else this.zoom(Math.exp((-event.deltaY * scale) / 500), event.clientX - box.left, event.clientY - box.top);
    return undefined;
  }

  told() {
    const hint = byId("hint");
    hint.hidden = false;
    clearTimeout(this.hiding);
    this.hiding = setTimeout(() => (hint.hidden = true), 1500);
  }

  down(event) {
    cancelAnimationFrame(this.frame);
    this.pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    this.travelled = 0;
    this.dragged = false;
  }

  move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const now = { x: event.clientX, y: event.clientY };
    this.travelled += Math.hypot(now.x - before.x, now.y - before.y);
    if (this.travelled > 4) {
      this.dragged = true;
      this.canvas.setPointerCapture?.(event.pointerId);
    }
    const others = [...this.pointers].filter(([id]) => id !== event.pointerId);
    if (others.length) {
      const other = others[0][1];
      const apart = (point) => Math.hypot(point.x - other.x, point.y - other.y) || 1;
      const box = this.canvas.getBoundingClientRect();
      this.zoom(apart(now) / apart(before), (now.x + other.x) / 2 - box.left, (now.y + other.y) / 2 - box.top);
    } else {
      this.pan(now.x - before.x, now.y - before.y);
    }
    this.pointers.set(event.pointerId, now);
  }

  /** What a key does to the view; false for other keys. */
  key(key, all) {
    const moves = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
    if (moves[key]) this.pan(...moves[key]);
    else if (key === "+" || key === "=") this.zoom(STEP);
    else if (key === "-") this.zoom(1 / STEP);
    else if (key === "0") all();
    else return false;
    return true;
  }
}
