// Reads the DICOM JSON that our own DICOMweb address gives for an image (see apps/radiology/tables.py).
export function readMetadata(item) {
  const value = (tag, fallback) => item[tag]?.Value?.[0] ?? fallback;
  const centers = item["00281050"]?.Value ?? [];
  const widths = item["00281051"]?.Value ?? [];
  const names = item["00281055"]?.Value ?? [];
  return {
    rows: value("00280010"),
    columns: value("00280011"),
    frames: value("00280008", 1),
    samples: value("00280002", 1),
    bits: value("00280100", 8),
    signed: value("00280103", 0) === 1,
    photometric: value("00280004", "MONOCHROME2"),
    modality: value("00080060", "OT"),
    slope: value("00281053", 1),
    intercept: value("00281052", 0),
    low: value("00280106", 0),
    high: value("00280107", 255),
    voiFunction: value("00281056", "LINEAR"),
    windows: centers.map((center, index) => ({ center, width: widths[index], name: names[index] ?? "window", function: value("00281056", "LINEAR") })),
  };
}

// Stored samples of one frame as the typed array that its bits and sign ask for (samples are little endian).
export function samplesOf(buffer, meta) {
  const expected = (meta.rows * meta.columns * meta.samples * meta.bits) / 8;
  if (buffer.byteLength !== expected) throw new Error(`${buffer.byteLength} of ${expected} bytes of the image arrived`);
  if (meta.bits === 8) return new Uint8Array(buffer);
  return meta.signed ? new Int16Array(buffer) : new Uint16Array(buffer);
}

// Values after the modality transformation, where it changes anything.
export function valuesOf(samples, meta) {
  if (meta.slope === 1 && meta.intercept === 0) return samples;
  const values = new Float32Array(samples.length);
  for (let i = 0; i < samples.length; i++) values[i] = samples[i] * meta.slope + meta.intercept;
  return values;
}

// Windows to choose from: those of the image, and all of its values.
export function presets(meta) {
  if (meta.samples === 3) return [];
  const whole = { center: (meta.low + meta.high) / 2, width: Math.max(1e-6, meta.high - meta.low), name: "all values" };
  return [...meta.windows, whole];
}
