// Feeds cornerstone with frames from our DICOMweb addresses: decoded once at intake, so nothing is decoded here.
import { imageLoader, metaData, utilities } from "@cornerstonejs/core";
import { readMetadata, samplesOf, valuesOf } from "./metadata.js";

const SCHEME = "assay";
const images = new Map(); // address of the metadata -> promise of what it says
const known = new Map(); // imageId -> what is known of the image

export function registerLoader({ cpu }) {
  imageLoader.registerImageLoader(SCHEME, (imageId) => ({ promise: load(imageId, cpu) }));
  metaData.addProvider((type, imageId) => provide(type, known.get(imageId)), 1000);
}

export const imageIdOf = (address, frame) => `${SCHEME}:${address}#${frame}`;

export async function metadataOf(address) {
  if (!images.has(address)) {
    const promise = get(address).then(async (response) => readMetadata((await response.json())[0]));
    images.set(address, promise);
    promise.catch(() => images.delete(address));
  }
  return images.get(address);
}

// Stacks ask for metadata before they load, so it must be known by then.
export function remember(imageId, meta) {
  known.set(imageId, meta);
}

async function load(imageId, cpu) {
  const [address, frame] = imageId.slice(SCHEME.length + 1).split("#");
  const [meta, response] = await Promise.all([metadataOf(address), get(address.replace(/metadata$/, `frames/${frame}`))]);
  remember(imageId, meta);
  const stored = samplesOf(await response.arrayBuffer(), meta);
  return meta.samples === 3 ? colourImage(imageId, stored, meta, cpu) : greyImage(imageId, stored, meta, cpu);
}

async function get(address) {
  const response = await fetch(address, { credentials: "same-origin" });
  if (!response.ok || response.redirected) throw new Error(response.redirected ? "you are signed out" : `the server answered ${response.status}`);
  return response;
}

// The CPU path windows whole numbers through a table with slope and intercept; the GPU path wants values.
function greyImage(imageId, stored, meta, cpu) {
  const data = cpu ? stored : valuesOf(stored, meta);
  const window = meta.windows[0];
  return base(imageId, data, meta, 1, {
    slope: cpu ? meta.slope : 1,
    intercept: cpu ? meta.intercept : 0,
    windowCenter: window.center,
    windowWidth: window.width,
    voiLUTFunction: meta.voiFunction,
    photometricInterpretation: meta.photometric,
    invert: meta.photometric === "MONOCHROME1",
  });
}

function colourImage(imageId, stored, meta, cpu) {
  const data = cpu ? withAlpha(stored) : stored;
  return base(imageId, data, meta, cpu ? 4 : 3, {
    slope: 1, intercept: 0, windowCenter: 128, windowWidth: 256, voiLUTFunction: "LINEAR", color: true, rgba: cpu,
    photometricInterpretation: "RGB", invert: false,
  });
}

function base(imageId, data, meta, components, rest) {
  const { rows, columns } = meta;
  let low = Infinity, high = -Infinity;
  for (let i = 0; i < data.length; i++) {
    if (data[i] < low) low = data[i];
    if (data[i] > high) high = data[i];
  }
  const voxelManager = utilities.VoxelManager.createImageVoxelManager({
    width: columns, height: rows, numberOfComponents: components, scalarData: data, id: imageId,
  });
  return {
    imageId, rows, columns, height: rows, width: columns, minPixelValue: low, maxPixelValue: high, color: false,
    rgba: false, numberOfComponents: components, columnPixelSpacing: 1, rowPixelSpacing: 1, dataType: data.constructor.name,
    sizeInBytes: data.byteLength, getPixelData: () => data, getCanvas: undefined, voxelManager, ...rest,
  };
}

function withAlpha(rgb) {
  const rgba = new Uint8Array((rgb.length / 3) * 4);
  for (let i = 0, j = 0; i < rgb.length; i += 3, j += 4) {
    rgba[j] = rgb[i];
    rgba[j + 1] = rgb[i + 1];
    rgba[j + 2] = rgb[i + 2];
    rgba[j + 3] = 255;
  }
  return rgba;
}

function provide(type, meta) {
  if (!meta) return undefined;
  const { rows, columns } = meta;
  const plane = {
    rows, columns, frameOfReferenceUID: "image", imageOrientationPatient: [1, 0, 0, 0, 1, 0], rowCosines: [1, 0, 0],
    columnCosines: [0, 1, 0], imagePositionPatient: [0, 0, 0], pixelSpacing: [1, 1], rowPixelSpacing: 1,
    columnPixelSpacing: 1, usingDefaultValues: true,
  };
  if (type === "imagePlaneModule") return plane;
  if (type === "generalSeriesModule") return { modality: meta.modality === "PT" ? "OT" : meta.modality };
  if (type !== "imagePixelModule") return undefined;
  const float = meta.samples === 1 && (meta.slope !== 1 || meta.intercept !== 0);
  const bits = float ? 32 : meta.bits;
  return {
    rows, columns, samplesPerPixel: meta.samples, bitsAllocated: bits, bitsStored: bits, highBit: bits - 1,
    pixelRepresentation: meta.signed ? 1 : 0, photometricInterpretation: meta.samples === 3 ? "RGB" : meta.photometric,
  };
}
