// <dicom-viewer images="ID OF A JSON SCRIPT">: shows the images of one study with window, zoom, pan, invert and scroll.
// Methods: show(key), box(key, [x, y, width, height], label), clearBox(). Event: image-shown (detail.key, detail.ms).
import { RenderingEngine, Enums, init as initCore, getEffectiveRenderBackend, getConfiguration, cache } from "@cornerstonejs/core";
import { addTool, Enums as ToolEnums, init as initTools, PanTool, StackScrollTool, ToolGroupManager, WindowLevelTool, ZoomTool } from "@cornerstonejs/tools";
import { imageIdOf, metadataOf, registerLoader, remember } from "./loader.js";
import { presets } from "./metadata.js";

const VIEWPORT = "film";
const TOOLS = { window: WindowLevelTool, zoom: ZoomTool, pan: PanTool };
const SVG = "http://www.w3.org/2000/svg";
let prepared = null;

function prepare() {
  prepared ??= (async () => {
    await initCore({ rendering: { useCPURendering: !hasWebGl() } });
    initTools();
    for (const tool of [...Object.values(TOOLS), StackScrollTool]) addTool(tool);
    cache.setMaxCacheSize(512 * 1024 * 1024);
    const cpu = getConfiguration().rendering.useCPURendering || getEffectiveRenderBackend() === Enums.RenderBackends.CPU;
    registerLoader({ cpu });
    return { cpu };
  })();
  return prepared;
}

function hasWebGl() {
  const context = document.createElement("canvas").getContext("webgl2");
  return Boolean(context);
}

class DicomViewer extends HTMLElement {
  #images = [];
  #current = -1;
  #viewport = null;
  #box = null;
  #meta = null;
  #tool = "window";
  #busy = null;

  async connectedCallback() {
    if (this.dataset.state) return;
    this.dataset.state = "loading";
    this.#images = JSON.parse(document.getElementById(this.getAttribute("images")).textContent);
    this.#frame();
    const first = this.#images.findIndex((image) => image.displayable);
    if (first < 0) return this.#fail(this.#images[0]?.reason || "This study holds no images.");
    try {
      await prepare();
      this.#mount();
      await this.#open(first);
    } catch (error) {
      this.#fail(`The viewer could not start: ${error.message}`);
    }
  }

  disconnectedCallback() {
    this.engine?.destroy();
    ToolGroupManager.destroyToolGroup(this.id || VIEWPORT);
  }

  async show(key) {
    const index = this.#images.findIndex((image) => image.key === key);
    if (index >= 0 && index !== this.#current) await this.#open(index);
  }

  async box(key, box, label) {
    await this.show(key);
    this.#box = { box, label };
    this.#drawBox();
  }

  clearBox() {
    this.#box = null;
    this.#drawBox();
  }

  #frame() {
    const tools = element("div", { class: "tools", role: "toolbar", "aria-label": "Viewer tools" });
    tools.append(
      this.#toolButton("window", "W/L", "w"),
      this.#toolButton("zoom", "Zoom", "z"),
      this.#toolButton("pan", "Pan", ""),
      button("1:1", "", () => this.#oneToOne(), "one image pixel to one screen pixel"),
      button("Invert", "i", () => this.#invert()),
      button("Reset", "r", () => this.#reset()),
    );
    this.presets = element("select", { class: "presets", "aria-label": "Window preset" });
    this.presets.addEventListener("change", () => this.#preset());
    tools.append(this.presets);
    this.film = element("div", { class: "film", role: "img", tabindex: "0", "aria-label": "Image" });
    this.overlay = document.createElementNS(SVG, "svg");
    this.overlay.setAttribute("class", "overlay");
    this.note = element("div", { class: "film-note", role: "status" });
    this.note.textContent = "Loading the image";
    this.readout = element("div", { class: "readout num", "aria-live": "off" });
    this.place = element("input", { type: "range", class: "frames", min: "1", "aria-label": "Frame", hidden: "" });
    this.place.addEventListener("input", () => this.#scroll(Number(this.place.value) - 1));
    const stage = element("div", { class: "stage" });
    stage.append(this.film, this.overlay, this.note, this.readout, this.place);
    this.replaceChildren(tools, stage, this.#strip());
    this.addEventListener("keydown", (event) => this.#key(event));
  }

  #strip() {
    const strip = element("div", { class: "strip", role: "group", "aria-label": "Images of this study" });
    this.#images.forEach((image, index) => {
      const item = element("button", { type: "button", class: "thumb", title: image.displayable ? image.label : image.reason });
      if (image.displayable) item.append(element("img", { src: image.thumbnail, alt: "", loading: "lazy" }));
      const words = element("span");
      words.textContent = image.label + (image.frames > 1 ? ` · ${image.frames}` : "") + (image.displayable ? "" : " · not shown");
      item.append(words);
      item.addEventListener("click", () => this.#open(index));
      strip.append(item);
    });
    return strip;
  }

  #toolButton(name, words, key) {
    const item = button(words, key, () => this.#choose(name));
    item.dataset.tool = name;
    item.setAttribute("aria-pressed", String(name === this.#tool));
    return item;
  }

  #mount() {
    const id = this.id || VIEWPORT;
    this.engine = new RenderingEngine(`engine-${id}`);
    this.engine.enableElement({ viewportId: VIEWPORT, type: Enums.ViewportType.STACK, element: this.film, defaultOptions: { background: [0.027, 0.035, 0.043] } });
    this.#viewport = this.engine.getViewport(VIEWPORT);
    this.group = ToolGroupManager.createToolGroup(id);
    for (const tool of [...Object.values(TOOLS), StackScrollTool]) this.group.addTool(tool.toolName);
    this.group.addViewport(VIEWPORT, this.engine.id);
    this.#choose(this.#tool);
    const redraw = () => (this.#drawBox(), this.#read());
    for (const name of [Enums.Events.IMAGE_RENDERED, Enums.Events.CAMERA_MODIFIED, Enums.Events.VOI_MODIFIED]) this.film.addEventListener(name, redraw);
    this.film.addEventListener(Enums.Events.STACK_NEW_IMAGE, () => this.#read());
    new ResizeObserver(() => {
      this.engine.resize(true, true);
      redraw();
    }).observe(this.film);
  }

  // The left button does the chosen tool; the right one zooms, the middle one pans, the wheel scrolls.
  #choose(name) {
    this.#tool = name;
    for (const item of this.querySelectorAll("[data-tool]")) item.setAttribute("aria-pressed", String(item.dataset.tool === name));
    if (!this.group) return;
    const { Primary, Auxiliary, Secondary, Wheel } = ToolEnums.MouseBindings;
    const extra = { zoom: [{ mouseButton: Secondary }, { numTouchPoints: 2 }], pan: [{ mouseButton: Auxiliary }], window: [] };
    for (const [key, tool] of Object.entries(TOOLS)) {
      const bindings = [...extra[key], ...(key === name ? [{ mouseButton: Primary }] : [])];
      this.group.setToolPassive(tool.toolName, { removeAllBindings: true });
      if (bindings.length) this.group.setToolActive(tool.toolName, { bindings });
    }
    this.group.setToolActive(StackScrollTool.toolName, { bindings: [{ mouseButton: Wheel }] });
  }

  async #open(index) {
    const began = performance.now();
    const image = this.#images[index];
    this.#current = index;
    this.querySelectorAll(".thumb").forEach((item, at) => item.toggleAttribute("aria-current", at === index));
    this.#box = null;
    if (!image.displayable) return this.#fail(image.reason);
    const mine = (this.#busy = Symbol(image.key));
    try {
      const meta = await metadataOf(image.metadata);
      const ids = Array.from({ length: meta.frames }, (_, frame) => imageIdOf(image.metadata, frame + 1));
      ids.forEach((id) => remember(id, meta));
      if (this.#busy !== mine) return;
      this.#meta = meta;
      await this.#viewport.setStack(ids, 0);
      if (this.#busy !== mine) return;
      this.#viewport.resetProperties();
      this.#viewport.resetCamera();
      this.#viewport.render();
    } catch (error) {
      if (this.#busy === mine) this.#fail(`This image cannot be displayed: ${error?.error?.message ?? error?.message ?? error}`);
      return;
    }
    this.#shown(image, performance.now() - began);
  }

  #shown(image, ms) {
    this.dataset.state = "shown";
    this.note.hidden = true;
    this.film.setAttribute("aria-label", `Image ${image.label}`);
    this.presets.replaceChildren(...presets(this.#meta).map((one, at) => new Option(`${one.name}`, String(at))));
    this.presets.hidden = !this.presets.length;
    this.place.max = String(this.#meta.frames);
    this.place.value = "1";
    this.place.hidden = this.#meta.frames < 2;
    this.#drawBox();
    this.#read();
    this.dispatchEvent(new CustomEvent("image-shown", { bubbles: true, detail: { key: image.key, ms } }));
  }

  #fail(reason) {
    this.dataset.state = "failed";
    this.note.hidden = false;
    this.note.textContent = reason;
    this.readout.textContent = "";
    this.presets.hidden = this.place.hidden = true;
    this.#drawBox();
  }

  #ready() {
    return this.dataset.state === "shown";
  }

  #invert() {
    if (!this.#ready()) return;
    this.#viewport.setProperties({ invert: !this.#viewport.getProperties().invert });
    this.#viewport.render();
  }

  #reset() {
    if (!this.#ready()) return;
    this.#viewport.resetProperties();
    this.#viewport.resetCamera();
    this.#viewport.render();
    this.presets.selectedIndex = 0;
  }

  #oneToOne() {
    if (!this.#ready()) return;
    this.#viewport.resetCamera();
    const [x0] = this.#viewport.worldToCanvas([0, 0, 0]);
    const [x1] = this.#viewport.worldToCanvas([this.#meta.columns, 0, 0]);
    const scale = Math.abs(x1 - x0) / this.#meta.columns;
    this.#viewport.setZoom(this.#viewport.getZoom() / (scale * devicePixelRatio));
    this.#viewport.render();
  }

  #preset() {
    const chosen = presets(this.#meta)[Number(this.presets.value)];
    if (!chosen || !this.#ready()) return;
    const offset = chosen.function === "LINEAR" ? 0.5 : 0; // PS3.3 C.11.2.1.2: LINEAR shows center - 0.5 ± (width - 1) / 2
    const half = (chosen.width - 2 * offset) / 2;
    this.#viewport.setProperties({ voiRange: { lower: chosen.center - offset - half, upper: chosen.center - offset + half } });
    this.#viewport.render();
  }

  #scroll(to) {
    if (!this.#ready() || to < 0 || to >= this.#meta.frames) return;
    this.#viewport.setImageIdIndex(to);
  }

  #key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target.matches("select,input")) return;
    const step = { ArrowUp: -1, ArrowDown: 1, PageUp: -10, PageDown: 10 }[event.key];
    const side = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step && this.#meta?.frames > 1) this.#scroll(this.#viewport.getCurrentImageIdIndex() + step);
    else if (side && this.#images[this.#current + side]) this.#open(this.#current + side);
    else return;
    event.preventDefault();
  }

  #read() {
    if (!this.#ready()) return;
    const range = this.#viewport.getProperties().voiRange;
    const frame = this.#viewport.getCurrentImageIdIndex() + 1;
    this.place.value = String(frame);
    const parts = [];
    if (this.#meta.frames > 1) parts.push(`${frame} / ${this.#meta.frames}`);
    if (range && this.#meta.samples === 1) parts.push(`W ${short(range.upper - range.lower)} L ${short((range.upper + range.lower) / 2)}`);
    parts.push(`${this.#meta.columns} × ${this.#meta.rows}`);
    this.readout.textContent = parts.join(" · ");
  }

  #drawBox() {
    this.overlay.replaceChildren();
    if (!this.#box || !this.#ready()) return;
    const { box, label } = this.#box;
    const at = (x, y) => this.#viewport.worldToCanvas([x * this.#meta.columns - 0.5, y * this.#meta.rows - 0.5, 0]);
    const [x0, y0] = at(box[0], box[1]);
    const [x1, y1] = at(box[0] + box[2], box[1] + box[3]);
    const rect = document.createElementNS(SVG, "rect");
    const set = { x: Math.min(x0, x1), y: Math.min(y0, y1), width: Math.abs(x1 - x0), height: Math.abs(y1 - y0) };
    for (const [name, value] of Object.entries(set)) rect.setAttribute(name, value.toFixed(1));
    const text = document.createElementNS(SVG, "text");
    text.setAttribute("x", (set.x + 4).toFixed(1));
    text.setAttribute("y", Math.max(12, set.y - 6).toFixed(1));
    text.textContent = label ?? "";
    this.overlay.append(rect, text);
  }
}

function element(name, attributes = {}) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function button(words, key, does, label) {
  const made = element("button", { type: "button", class: "btn" });
  made.append(words);
  if (key) {
    const mark = element("kbd");
    mark.textContent = key;
    made.append(" ", mark);
    made.dataset.key = key;
  }
  if (label) made.title = label;
  made.addEventListener("click", does);
  return made;
}

const short = (value) => (Math.abs(value) >= 100 ? Math.round(value) : Number(value.toPrecision(3)));

customElements.define("dicom-viewer", DicomViewer);
