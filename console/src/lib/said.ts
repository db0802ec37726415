// Sentences of the server, made ready to be shown.

export interface Piece {
  code: boolean;
  text: string;
}

/** Begins with a capital letter; what stands between two backticks is code. */
export function pieces(text: string): Piece[] {
  const found = [...text.matchAll(/`([^`]+)`|[^`]+|`/g)].map(([all, code]) =>
    code === undefined ? { code: false, text: all } : { code: true, text: code },
  );
  const first = found[0];
  if (first && !first.code) first.text = first.text.charAt(0).toUpperCase() + first.text.slice(1);
  return found;
}
