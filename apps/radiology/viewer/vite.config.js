// Builds the element into one ES module beside the app's other static files.
import { defineConfig } from "vite";

export default defineConfig({
  define: { "process.env.NODE_ENV": JSON.stringify("production"), global: "globalThis" },
  build: {
    lib: { entry: "src/element.js", formats: ["es"], fileName: () => "dicom-viewer.mjs" },
    outDir: "../static/viewer",
    emptyOutDir: true,
    sourcemap: false,
    target: "es2022",
    chunkSizeWarningLimit: 6000,
  },
  worker: { format: "es" },
});
