// A component of wasi:http 0.2 in JavaScript, without anything of Hob: the same file runs under `wasmtime serve`.
//
// `./build` makes it, with componentize-js from npm: SpiderMonkey and this file in one component of 13 MB.
//
//     hob deploy                                          # in this folder; runs ./build first
//     curl 'http://127.0.0.1:3000/js-hello/?name=Ana'     # Hello, Ana!
//     wasmtime serve -S cli ../target/js-hello/hello.wasm

addEventListener("fetch", (event) => {
  const name = new URL(event.request.url).searchParams.get("name") ?? "world";
  event.respondWith(new Response(`Hello, ${name}!\n`, { headers: { "content-type": "text/plain; charset=utf-8" } }));
});
