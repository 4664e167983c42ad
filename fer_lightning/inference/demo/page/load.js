// The runtime, the detector and the network. A library is only used if it is the file that its digest names.

/** An error whose message is for the person at the page. */
export class Problem extends Error {}

/**
 * @param {(text: string) => void} report progress
 * @returns {Promise<{about: object, find: Function, classify: Function}>} `find` maps an ImageData to faces, `classify`
 *     an array of crops to one Float32Array of probabilities each.
 */
export async function load(report) {
  if (typeof WebAssembly !== "object") {
    throw new Problem("This browser does not offer WebAssembly, which the demo needs. Use a current browser, or allow "
      + "WebAssembly in its security settings.");
  }
  const about = await (await own("model.json")).json();
  const { runtime, wasm, blaze } = about.libraries;
  const megabytes = Math.ceil(runtime.megabytes + wasm.megabytes + blaze.megabytes);
  report(`Loading the runtime and the face detector (${megabytes} MB, only the first time)…`);
  const [script, binary, tflite, network] = await Promise.all([
    library(runtime), library(wasm), library(blaze), own("model.onnx").then((response) => response.arrayBuffer()),
  ]);
  report("Starting the networks…");
  const source = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
  const { loadDetector } = await import("./detector.js");
  try {
    const ort = await import(source);
    ort.env.wasm.numThreads = 1; // more need headers that static hosts do not send
    ort.env.wasm.wasmBinary = binary;
    const session = await ort.InferenceSession.create(network, { executionProviders: ["wasm"] });
    const find = await loadDetector(ort, tflite);
    const area = about.size ** 2;
    const classify = async (crops) => {
      const faces = new Uint8Array(crops.length * area);
      crops.forEach((pixels, i) => faces.set(pixels, i * area));
      const shape = [crops.length, about.size, about.size];
      const { data } = (await session.run({ faces: new ort.Tensor("uint8", faces, shape) })).probabilities;
      const count = about.classes.length;
      return crops.map((_, i) => data.slice(i * count, (i + 1) * count));
    };
    return { about, find, classify };
  } catch (error) {
    throw new Problem(`The networks could not be started in this browser (${error.message}). Use a current version of `
      + "Firefox, Chrome, Edge or Safari.", { cause: error });
  } finally {
    URL.revokeObjectURL(source);
  }
}

async function own(name) {
  try {
    const response = await fetch(name);
    if (response.ok) return response;
  } catch {
    // reported below
  }
  throw new Problem(`${name} could not be loaded. Reload the page; if that does not help, its server has stopped or `
    + "the site is incomplete.");
}

async function library({ urls, integrity }) {
  for (const url of urls) {
    try {
      const response = await fetch(url, { integrity, credentials: "omit", referrerPolicy: "no-referrer" });
      if (response.ok) return await response.arrayBuffer();
    } catch {
      // the next address
    }
  }
  const name = urls[0].split("/").at(-1);
  const hosts = urls.map((url) => new URL(url, location.href).host).join(" and ");
  throw new Problem(`${name} could not be loaded from ${hosts}, or is not the file that this page was made for. Check `
    + "the network and reload; fer-lightning demo --assets runs the demo without one.");
}
