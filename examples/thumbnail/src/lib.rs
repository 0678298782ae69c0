//! A handler that computes: a PNG or JPEG comes in, a smaller one of the same format goes out.
//!
//! Shows an ordinary crate (`image`) inside a handler, limits in `hob.toml` that fit the work, and errors that are the client's
//! (a status of the handler's choice) apart from those that are not (`?`).
//!
//! ```text
//! hob deploy                                                  # in this folder
//! curl 'http://127.0.0.1:3000/thumbnail/?size=128' --data-binary @photo.jpg -o small.jpg
//! ```

use std::io::Cursor;

use hob_sdk::{Error, Request, Response, StatusCode};
use image::{ImageFormat, ImageReader, Limits};

/// Longest side of the answer, in pixels, unless the query says otherwise.
const SIZE_DEFAULT: u32 = 256;
const SIZE_MAX: u32 = 2048;
/// Longest side of what is accepted, in pixels. A small file can unpack to a huge picture.
const SIDE_MAX: u32 = 16_384;
/// Memory for the picture as it was, in bytes; `hob.toml` allows about twice that in all.
const DECODED_LEN_MAX: u64 = 80 << 20;

#[hob_sdk::function]
fn handle(mut req: Request) -> Result<Response, Error> {
    let Some(size) = size(req.query()) else {
        return Ok(refuse(StatusCode::BAD_REQUEST, &format!("size is a number of pixels from 1 to {SIZE_MAX}")));
    };
    let bytes = req.body().read_bytes()?;
    let format = match image::guess_format(&bytes) {
        Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg)) => format,
        _ => return Ok(refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "post a PNG or a JPEG")),
    };
    let mut reader = ImageReader::with_format(Cursor::new(&bytes), format);
    reader.limits(limits());
    let image = match reader.decode() {
        Ok(image) => image,
        Err(error) => return Ok(refuse(StatusCode::BAD_REQUEST, &format!("cannot read the picture: {error}"))),
    };
    let small = if image.width().max(image.height()) <= size {
        bytes
    } else {
        let mut small = Cursor::new(Vec::new());
        image.thumbnail(size, size).write_to(&mut small, format)?;
        small.into_inner()
    };
    Ok(Response::new(small).with_header("content-type", format.to_mime_type()))
}

fn size(query: Option<&str>) -> Option<u32> {
    let mut pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    match pairs.find(|(key, _)| key == "size") {
        Some((_, size)) => size.parse().ok().filter(|size| (1..=SIZE_MAX).contains(size)),
        None => Some(SIZE_DEFAULT),
    }
}

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_image_width = Some(SIDE_MAX);
    limits.max_image_height = Some(SIDE_MAX);
    limits.max_alloc = Some(DECODED_LEN_MAX);
    limits
}

fn refuse(status: StatusCode, why: &str) -> Response {
    Response::from(format!("{why}\n")).with_status(status)
}

#[cfg(test)]
mod tests {
    use hob_sdk::http;
    use image::{DynamicImage, RgbImage};

    use super::*;

    fn picture(width: u32, height: u32, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        DynamicImage::from(RgbImage::new(width, height)).write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn answer(query: &str, body: Vec<u8>) -> http::Response<Vec<u8>> {
        handle(http::Request::post(format!("/?{query}")).body(body).unwrap().into()).unwrap().into_http().unwrap()
    }

    #[test]
    fn it_shrinks_and_keeps_the_format() {
        for (format, name) in [(ImageFormat::Png, "image/png"), (ImageFormat::Jpeg, "image/jpeg")] {
            let response = answer("size=100", picture(800, 400, format));
            assert_eq!(response.headers()["content-type"], name);
            assert_eq!(image::guess_format(response.body()).unwrap(), format);
            let small = image::load_from_memory(response.body()).unwrap();
            assert_eq!((small.width(), small.height()), (100, 50));
        }
    }

    #[test]
    fn a_small_picture_comes_back_as_it_was() {
        let small = picture(256, 10, ImageFormat::Png);
        assert_eq!(*answer("", small.clone()).body(), small);
    }

    #[test]
    fn what_is_no_picture_is_the_clients_error() {
        let png = picture(300, 300, ImageFormat::Png);
        assert_eq!(answer("", b"hello".to_vec()).status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
        assert_eq!(answer("", b"GIF89a".to_vec()).status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
        assert_eq!(answer("", png[..png.len() / 2].to_vec()).status(), StatusCode::BAD_REQUEST);
        assert_eq!(answer("size=0", png.clone()).status(), StatusCode::BAD_REQUEST);
        assert_eq!(answer("size=x", png).status(), StatusCode::BAD_REQUEST);
    }
}
