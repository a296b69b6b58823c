// A function in JavaScript, a service of WASI 0.3: greets who the body names.
import types from 'wasi:http/types@0.3.0';

const { Fields, Request, Response } = types;
const bytes = (text) => new Uint8Array([...text].map((letter) => letter.charCodeAt(0)));

export const handler = {
  async handle(request) {
    const [body] = Request.consumeBody(request, Promise.resolve({ tag: 'ok' }));
    let name = '';
    for await (const piece of body) name += String.fromCharCode(...piece);
    const headers = new Fields();
    headers.append('content-type', bytes('text/plain'));
    const text = async function* () {
      yield bytes(`hello, ${name.trim() || 'world'}!\n`);
    };
    const [response] = Response.new(headers, text(), Promise.resolve({ tag: 'ok', val: null }));
    return response;
  },
};
