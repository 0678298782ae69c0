//! A component of `wasi:http` 0.2 that has the host keep things.
//!
//! The query of the request is one of these; the answer is how many were kept at the end, or what the interface said.
//!
//! - `headers COUNT BYTES`: so many sets, each with a header of that length, one beginning it, one more appended to it;
//! - `clones COUNT BYTES`: one set, and copies of it from each of which something is taken away;
//! - `requests COUNT BYTES`: requests with an authority and a path of that length;
//! - `bodies COUNT BYTES`: requests with a body that is begun, and written to until no more is taken;
//! - `passing COUNT BYTES`: as `headers`, but each is dropped before the next, with a request whose body is begun;
//! - `target METHOD AUTHORITY PATH`: a request with parts of those lengths;
//! - `list COUNT`: so many listings of the first folder;
//! - `names`: what is in it;
//! - `read COUNT NAME`: so many streams of a file in it;
//! - `write BYTES`: so many to standard output at once;
//! - `error BYTES`: an error instead of a response, with words of that length.

use wasip2::cli::stdout::get_stdout;
use wasip2::exports::http::incoming_handler::Guest as Handler;
use wasip2::filesystem::preopens::get_directories;
use wasip2::filesystem::types::{Descriptor, DescriptorFlags, OpenFlags, PathFlags};
use wasip2::http::types::{
    ErrorCode, Fields, IncomingRequest, Method, OutgoingBody, OutgoingRequest, OutgoingResponse, ResponseOutparam,
};

struct Holds;

wasip2::http::proxy::export!(Holds);

impl Handler for Holds {
    fn handle(request: IncomingRequest, outparam: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        drop(request);
        let query = path.split_once('?').map_or("", |(_, query)| query).to_owned();
        let words: Vec<&str> = query.split('+').collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse().ok()).unwrap_or(0_usize);
        let (count, len) = (number(1), number(2));
        let answer = match words.first().copied().unwrap_or_default() {
            "headers" => (0..count).map(|_| headers(len)).collect::<Vec<_>>().len().to_string(),
            "clones" => {
                let first = headers(len);
                let copy = |_| {
                    let copy = first.clone();
                    copy.delete("b").expect("it can be taken away");
                    copy
                };
                (0..count).map(copy).collect::<Vec<_>>().len().to_string()
            }
            "requests" => {
                let request = |_| {
                    let request = OutgoingRequest::new(Fields::new());
                    request.set_authority(Some(&"a".repeat(len))).expect("it is an authority");
                    request.set_path_with_query(Some(&format!("/{}", "p".repeat(len)))).expect("it is a path");
                    request
                };
                (0..count).map(request).collect::<Vec<_>>().len().to_string()
            }
            "bodies" => {
                let begin = |_| {
                    let request = OutgoingRequest::new(Fields::new());
                    let body = request.body().expect("it is taken once");
                    let stream = body.write().expect("it is taken once");
                    loop {
                        let most = usize::try_from(stream.check_write().expect("it is open")).expect("it is a piece");
                        if most == 0 {
                            break;
                        }
                        stream.write(&vec![b'b'; len.min(most)]).expect("so much was allowed");
                    }
                    (request, stream, body)
                };
                (0..count).map(begin).collect::<Vec<_>>().len().to_string()
            }
            "passing" => {
                (0..count).for_each(|_| drop(OutgoingRequest::new(headers(len)).body()));
                "0".into()
            }
            "target" => {
                let request = OutgoingRequest::new(Fields::new());
                let method = request.set_method(&Method::Other("M".repeat(number(1)))).is_ok();
                let authority = request.set_authority(Some(&"a".repeat(number(2)))).is_ok();
                let path = request.set_path_with_query(Some(&format!("/{}", "p".repeat(number(3) - 1)))).is_ok();
                format!("{method} {authority} {path}")
            }
            "list" => {
                let folder = folder();
                let listings: Result<Vec<_>, _> = (0..count).map(|_| folder.read_directory()).collect();
                listings.map_or_else(|code| format!("{code:?}"), |listings| listings.len().to_string())
            }
            "names" => {
                let listing = folder().read_directory().expect("it is a folder");
                let entry = || listing.read_directory_entry().expect("it is a name");
                let mut names: Vec<_> =
                    std::iter::from_fn(entry).map(|entry| format!("{} {:?}", entry.name, entry.type_)).collect();
                names.sort();
                names.join("\n")
            }
            "read" => {
                let folder = folder();
                let file = folder
                    .open_at(PathFlags::empty(), words[2], OpenFlags::empty(), DescriptorFlags::READ)
                    .expect("it is a file");
                let stream = |_| {
                    let stream = file.read_via_stream(0).expect("it is a file");
                    let _ = stream.read(65536);
                    stream.subscribe().block();
                    stream
                };
                (0..count).map(stream).collect::<Vec<_>>().len().to_string()
            }
            "write" => format!("{:?}", get_stdout().write(&vec![b'w'; number(1)])),
            "error" => {
                let words = "\u{7f}".repeat(number(1));
                return ResponseOutparam::set(outparam, Err(ErrorCode::InternalError(Some(words))));
            }
            _ => "not understood".into(),
        };
        let response = OutgoingResponse::new(Fields::new());
        let body = response.body().expect("the body is taken once");
        ResponseOutparam::set(outparam, Ok(response));
        let stream = body.write().expect("the stream is taken once");
        for piece in answer.as_bytes().chunks(4096) {
            // A client that has gone away is no fault of this function.
            let _ = stream.blocking_write_and_flush(piece);
        }
        drop(stream);
        let _ = OutgoingBody::finish(body, None);
    }
}

fn folder() -> Descriptor {
    get_directories().into_iter().next().expect("there is a folder").0
}

fn headers(len: usize) -> Fields {
    let fields = Fields::from_list(&[("a".to_owned(), vec![b'a'; len])]).expect("they are headers");
    fields.append("b", b"b").expect("it is a header");
    fields.set("c", &[b"c".to_vec()]).expect("it is a header");
    fields
}
