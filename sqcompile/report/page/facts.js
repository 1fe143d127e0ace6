// What was measured of nodes: tensors, bytes, kernels, times. All of it is of the compiled graph.

export class Facts {
  constructor(report) {
    this.report = report;
    this.tensors = new Map();
    for (const tensor of report.tensors ?? [])
      for (const name of new Set([tensor.name, tensor.node])) this.tensors.set(name, [...(this.tensors.get(name) ?? []), tensor]);
    this.saved = new Map(report.saved.tensors.map((one) => [one.name, one]));
    this.kernels = new Map();
    for (const [kernel, calls] of Object.entries(report.kernels))
      for (const call of calls) {
        const [pass, together] = call.split("/");
        for (const name of together.split("+")) this.kernels.set(`${pass}/${name}`, { kernel, call });
      }
    this.products = new Map(report.products.map((one) => [`${one.pass}/${one.node}`, one]));
  }

  /** The kernel of a node of the compiled graph: {kernel, call}, the call named after its nodes. */
  kernelOf(node) {
    return this.kernels.get(`${node.pass}/${node.name}`) ?? null;
  }

  /** Milliseconds of a node's kernel, null where it was not timed or runs in another's. */
  timeOf(node) {
    return this.report.times[`${node.pass}/${node.name}`] ?? null;
  }

  programOf(node) {
    return this.report.programs[`${node.pass}/${node.name}`] ?? null;
  }

  /** Bytes that nodes and the items of their tuples keep for backward. */
  keptBy(nodes, stage) {
    return withItems(nodes, stage).reduce((sum, node) => sum + (this.saved.get(node.name)?.bytes ?? 0), 0);
  }

  /** The least signal over noise of what nodes quantise, null where nothing is known. */
  worst(nodes) {
    const found = nodes.flatMap((node) => this.tensors.get(node.name) ?? []).map((one) => one.sqnr_db);
    const told = found.filter((value) => value !== null);
    return told.length ? Math.min(...told) : null;
  }
}

/** Nodes and the items that are taken out of their tuples. */
export function withItems(nodes, stage) {
  const items = nodes.flatMap((node) => [...(stage.readers.get(node.name) ?? [])].map((name) => stage.byName.get(name)));
  return [...nodes, ...items.filter((node) => node?.op === "getitem")];
}
