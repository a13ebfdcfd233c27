// Behaviour of every page: keys, live times, theme. Pages work without it.
import { listen as listenKeys } from "./keys.mjs";
import { start as startTimes } from "./times.mjs";
import { listen as listenTheme } from "./theme.mjs";

listenKeys();
startTimes();
listenTheme();
