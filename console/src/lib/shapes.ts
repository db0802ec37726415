// The shapes of `looks.ts` as paths in a box of 12 by 12 around (0, 0).

import type { Shape } from "./looks";

export const paths: Record<Shape, { d: string; open?: boolean }> = {
  disc: { d: "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0Z" },
  ring: { d: "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z", open: true },
  triangle: { d: "M0 -4.6L5 4.2H-5Z" },
  cross: { d: "M-3.8 -3.8L3.8 3.8M3.8 -3.8L-3.8 3.8", open: true },
  erased: { d: "M-1.8 -4H5V4H-1.8L-5.2 0ZM0 -1.4L2.8 1.4M2.8 -1.4L0 1.4", open: true },
  square: { d: "M-3.6 -3.6H3.6V3.6H-3.6Z" },
  question: { d: "M-2.4 -2.6C-2.2 -5.2 2.6 -5.2 2.6 -2.4C2.6 -.4 0 -.4 0 1.6M0 4.6V4.7", open: true },
  diamond: { d: "M0 -5.2L5.2 0L0 5.2L-5.2 0Z" },
  "diamond-open": { d: "M0 -4.6L4.6 0L0 4.6L-4.6 0Z", open: true },
};
