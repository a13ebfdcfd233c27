// Builds the element into one ES module beside the app's other static files.
import { defineConfig } from "vite";

export default defineConfig({
  // vtk.js reaches these modules of Node through an XML reader; browsers have none.
  resolve: { alias: { events: "events/", url: "url/" } },
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
