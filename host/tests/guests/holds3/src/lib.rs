//! A component of `wasi:http` 0.3 that has the host keep things.
//!
//! The query of the request is one of these; the answer is how many were kept at the end, or what the interface said.
//!
//! - `headers COUNT BYTES`: so many sets, each with a header of that length, and one more appended to it;
//! - `clones COUNT BYTES`: one set, and copies of it from each of which something is taken away;
//! - `requests COUNT BYTES`: requests with an authority and a path of that length;
//! - `passing COUNT BYTES`: as `headers`, but each is dropped before the next;
//! - `target METHOD AUTHORITY PATH`: a request with parts of those lengths;
//! - `streams COUNT`: so many streams, with both of their ends;
//! - `list COUNT`: so many listings of the first folder, none of which is read;
//! - `names`: what is in it;
//! - `read COUNT NAME`: so many streams of a file in it, of each of which a byte is read;
//! - `stat BYTES`: asks for a file whose path has that length.

use wasip3::exports::http::handler::Guest;
use wasip3::filesystem::preopens::get_directories;
use wasip3::filesystem::types::{DescriptorFlags, OpenFlags, PathFlags};
use wasip3::http::types::{ErrorCode, Fields, Method, Request, Response};
use wasip3::{wit_bindgen, wit_future, wit_stream};

struct Holds;

wasip3::http::service::export!(Holds);

impl Guest for Holds {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let path = request.get_path_with_query().unwrap_or_default();
        drop(request);
        let query = path.split_once('?').map_or("", |(_, query)| query).to_owned();
        let words: Vec<&str> = query.split('+').collect();
        let answer = match words[0] {
            "list" | "names" | "read" | "stat" => files(&words).await,
            _ => answer(&words),
        };
        let (mut body, body_reader) = wit_stream::new();
        let (trailers, trailers_reader) = wit_future::new(|| Ok(None));
        let (response, _sent) = Response::new(Fields::new(), Some(body_reader), trailers_reader);
        drop(trailers);
        wit_bindgen::spawn_local(async move {
            let _ = body.write_all(answer.into_bytes()).await;
        });
        Ok(response)
    }
}

fn answer(words: &[&str]) -> String {
    let number = |at: usize| words.get(at).and_then(|word| word.parse().ok()).unwrap_or(0_usize);
    let (count, len) = (number(1), number(2));
    match words.first().copied().unwrap_or_default() {
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
            let one = |_| {
                let request = request();
                request.set_authority(Some(&"a".repeat(len))).expect("it is an authority");
                request.set_path_with_query(Some(&format!("/{}", "p".repeat(len)))).expect("it is a path");
                request
            };
            (0..count).map(one).collect::<Vec<_>>().len().to_string()
        }
        "passing" => {
            (0..count).for_each(|_| drop(headers(len)));
            "0".into()
        }
        "target" => {
            let request = request();
            let method = request.set_method(&Method::Other("M".repeat(number(1)))).is_ok();
            let authority = request.set_authority(Some(&"a".repeat(number(2)))).is_ok();
            let path = request.set_path_with_query(Some(&format!("/{}", "p".repeat(number(3) - 1)))).is_ok();
            format!("{method} {authority} {path}")
        }
        "streams" => (0..count).map(|_| wit_stream::new::<u8>()).collect::<Vec<_>>().len().to_string(),
        _ => "not understood".into(),
    }
}

async fn files(words: &[&str]) -> String {
    let count: usize = words.get(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    let (folder, _) = get_directories().into_iter().next().expect("there is a folder");
    match words[0] {
        "list" => (0..count).map(|_| folder.read_directory()).collect::<Vec<_>>().len().to_string(),
        "names" => {
            let (names, end) = folder.read_directory();
            let mut names: Vec<_> =
                names.collect().await.iter().map(|entry| format!("{} {:?}", entry.name, entry.type_)).collect();
            end.await.expect("all were read");
            names.sort();
            names.join("\n")
        }
        "read" => {
            let file = folder.open_at(PathFlags::empty(), words[2].into(), OpenFlags::empty(), DescriptorFlags::READ).await;
            let file = file.expect("it is a file");
            let mut streams = Vec::new();
            for _ in 0..count {
                let (mut stream, end) = file.read_via_stream(0);
                let (_, byte) = stream.read(Vec::with_capacity(1)).await;
                assert_eq!(byte.len(), 1);
                streams.push((stream, end));
            }
            streams.len().to_string()
        }
        _ => format!("{:?}", folder.stat_at(PathFlags::empty(), "s".repeat(count)).await.map(|_| ())),
    }
}

fn request() -> Request {
    let (trailers, trailers_reader) = wit_future::new(|| Ok(None));
    let (request, _sent) = Request::new(Fields::new(), None, trailers_reader, None);
    drop(trailers);
    request
}

fn headers(len: usize) -> Fields {
    let fields = Fields::from_list(&[("a".to_owned(), vec![b'a'; len])]).expect("they are headers");
    fields.append("b", b"b").expect("it is a header");
    fields.set("c", &[b"c".to_vec()]).expect("it is a header");
    fields
}
