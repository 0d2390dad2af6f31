// What the page carries: values as JSON, and blocks of gzip in base64 that are opened when needed.

const values = JSON.parse($("values").textContent);

async function blockBytes(name) {
  if (typeof DecompressionStream === "undefined") {
    throw new Error("this browser cannot unpack the page (it has no DecompressionStream); a newer one can");
  }
  const packed = atob($(`block-${name}`).textContent);
  const content = new Uint8Array(packed.length);
  for (let place = 0; place < packed.length; place += 1) content[place] = packed.charCodeAt(place);
  const stream = new Blob([content]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

const blockText = async (name) => new TextDecoder().decode(await blockBytes(name));
const blockValues = async (name) => JSON.parse(await blockText(name));

// plotly.js is a script of the page's own: its hash stands in the page's policy.
async function loadPlotly() {
  const script = el("script", {}, await blockText("plotly"));
  document.head.append(script);
  if (typeof Plotly === "undefined") throw new Error("plotly.js did not start");
}

// Whole numbers to values, as the packer says: sign(q) (q / Q)^2 scale.
function unquantised(numbers, first, length, scale) {
  const largest = values.tokens.num_bits === 8 ? 127 : 32767;
  return Array.from(numbers.subarray(first, first + length), (whole) => {
    if (whole < -largest) return null;
    return Math.sign(whole) * (whole / largest) ** 2 * scale;
  });
}

const openBlocks = new Map();

// The token values of a pair, by side, or null if the page has none.
async function tokensOfPair(pair) {
  const number = values.tokens.block_of_pair[pair];
  if (number === undefined) return null;
  if (!openBlocks.has(number)) openBlocks.set(number, openBlock(number));
  return (await openBlocks.get(number))[pair];
}

async function openBlock(number) {
  const buffer = await blockBytes(`tokens-${number}`);
  const length = new DataView(buffer).getUint32(0, true);
  const pairs = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const Numbers = values.tokens.num_bits === 8 ? Int8Array : Int16Array;
  const numbers = new Numbers(buffer, 4 + length);
  const unpack = (value, name) => {
    if (Array.isArray(value)) return name === "ids" || name === "counted" ? value : unquantised(numbers, ...value);
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, unpack(each, key)]));
  };
  return unpack(pairs, "");
}
