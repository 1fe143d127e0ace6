// The stages of the page as graphs: nodes by name, who reads whom, what a pass changed.

import { along } from "report/data.js";

const FIELDS = ["name", "op", "inputs", "value", "bits", "role", "module", "line", "port", "backward"];

/** One stage, built when it is first looked at. */
class Stage {
  constructor(data, whole, before) {
    Object.assign(this, { name: data.name, about: data.about, milliseconds: data.milliseconds });
    this.begins = data.begins;
    this.before = before;
    this.levels = whole.pictures[data.picture];
    this.data = data;
    this.whole = whole;
  }

  get text() {
    return (this._text ??= along(this.data.text, this.whole.lines));
  }

  get nodes() {
    return (this._nodes ??= along(this.data.nodes, this.whole.nodes).map((fields, place) => {
      const node = Object.fromEntries(FIELDS.map((field, n) => [field, fields[n]]));
      node.pass = this.begins === null ? "" : place < this.begins ? "forward" : "backward";
      return node;
    }));
  }

  /** Nodes by name; of a value handed to backward, the one that made it. */
  get byName() {
    if (!this._byName) {
      this._byName = new Map();
      for (const node of this.nodes) if (!this._byName.has(node.name)) this._byName.set(node.name, node);
    }
    return this._byName;
  }

  /** Names of the nodes that read a value. */
  get readers() {
    if (!this._readers) {
      this._readers = new Map();
      for (const node of this.nodes)
        for (const input of node.inputs) {
          if (!this._readers.has(input)) this._readers.set(input, new Set());
          this._readers.get(input).add(node.name);
        }
    }
    return this._readers;
  }

  /** The line of the text that computes a node, by its name. */
  get lines() {
    if (!this._lines) {
      this._lines = new Map();
      for (const line of this.text) {
        const found = /^ {4}(\w+): /.exec(line);
        if (found && !this._lines.has(found[1])) this._lines.set(found[1], line.trim());
      }
    }
    return this._lines;
  }

  /** What the pass did: names of nodes that are new, that changed and that are gone. Where the
   * graph is cut in two, nothing: backward takes views of its own of what it is handed. */
  get changes() {
    return (this._changes ??= this.before && this.begins === null ? compared(this.before, this) : { added: new Set(), changed: new Set(), removed: [] });
  }
}

function compared(before, after) {
  const plain = (line) => line?.replace(/,$/, "");
  const added = new Set();
  const changed = new Set();
  for (const name of after.byName.keys()) {
    if (!before.byName.has(name)) added.add(name);
    else if (plain(before.lines.get(name)) !== plain(after.lines.get(name)) && after.lines.has(name)) changed.add(name);
  }
  const removed = [...before.byName.values()].filter((node) => !after.byName.has(node.name));
  return { added, changed, removed };
}

/** The page's stages, in order. */
export function stagesOf(whole) {
  const stages = [];
  for (const data of whole.stages) stages.push(new Stage(data, whole, stages.at(-1) ?? null));
  return stages;
}
