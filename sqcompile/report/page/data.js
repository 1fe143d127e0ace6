// What the page carries: blobs of gzip in base64, unpacked once, when they are first asked for.

const unpacked = new Map();

/** The text of packed data. */
export async function unpack(base64) {
  const raw = atob(base64);
  const bytes = new Uint8Array(raw.length);
  for (let n = 0; n < raw.length; n++) bytes[n] = raw.charCodeAt(n);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

/** The text of the blob called `name`, "" where the page has none. */
export function blobText(name) {
  if (!unpacked.has(name)) {
    const holder = document.getElementById(`blob-${name}`);
    unpacked.set(name, holder ? unpack(holder.textContent.trim()) : Promise.resolve(""));
  }
  return unpacked.get(name);
}

/** The JSON of the blob called `name`, null where the page has none. */
export async function blob(name) {
  const text = await blobText(name);
  return text ? JSON.parse(text) : null;
}

/** A list from its steps: each place is told by its distance from the one before. */
export function along(steps, values) {
  let place = 0;
  return steps.map((step) => values[(place += step)]);
}

let listed = null;

/** The texts that there are of a kernel: [{title, file, packed}]. */
export function listings(kernel) {
  listed ??= JSON.parse(document.getElementById("listings").textContent);
  return listed[kernel] ?? [];
}
