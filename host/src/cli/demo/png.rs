//! A PNG without compression: enough to make a picture of any size without a library for pictures.
//!
//! Written after the PNG specification, third edition (W3C, 2025); zlib without compression after RFC 1950 and RFC 1951, 3.2.4.

/// What every PNG begins with.
pub(super) const SIGNATURE: [u8; 8] = *b"\x89PNG\r\n\x1a\n";

/// Bytes of one pixel: red, green and blue.
const PIXEL: usize = 3;
/// Longest stored block of deflate, in bytes.
const STORED_MAX: usize = 0xffff;

/// A picture of `width` times `height` pixels with the colours that `pixel(x, y)` gives.
pub(super) fn encode(width: u32, height: u32, pixel: impl Fn(u32, u32) -> [u8; PIXEL]) -> Vec<u8> {
    let mut raw = Vec::with_capacity(height as usize * (width as usize * PIXEL + 1));
    for y in 0..height {
        // Filter 0: the line as it is.
        raw.push(0);
        raw.extend((0..width).flat_map(|x| pixel(x, y)));
    }
    let mut header = [width.to_be_bytes(), height.to_be_bytes()].concat();
    // Eight bits, colour, deflate, filters of method 0, not interlaced.
    header.extend([8, 2, 0, 0, 0]);
    let mut out = SIGNATURE.to_vec();
    chunk(&mut out, b"IHDR", &header);
    chunk(&mut out, b"IDAT", &zlib(&raw));
    chunk(&mut out, b"IEND", &[]);
    out
}

/// Width and height in the header of a PNG; `None` if it is none.
pub(super) fn size(png: &[u8]) -> Option<(u32, u32)> {
    let header = png.strip_prefix(&SIGNATURE)?.get(..16)?;
    let number = |at: usize| header.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
    if &header[4..8] == b"IHDR" { number(8).zip(number(12)) } else { None }
}

/// A picture that looks a little like a photograph to a codec: slow gradients, and grain on them.
pub(super) fn photo(width: u32, height: u32) -> Vec<u8> {
    encode(width, height, |x, y| {
        let grain = (x.wrapping_mul(2_654_435_761) ^ y.wrapping_mul(40_503)).rotate_left(11).wrapping_mul(2_246_822_519) >> 28;
        let wave = |over: u32, phase: u32| {
            let place = (x + y / 2 + phase) % (2 * over);
            place.min(2 * over - place) * 200 / over
        };
        [wave(700, 0), wave(450, 150), wave(900, 300)].map(|base| u8::try_from(base + grain).unwrap_or(u8::MAX))
    })
}

fn chunk(out: &mut Vec<u8>, kind: &[u8; 4], data: &[u8]) {
    let len = u32::try_from(data.len()).expect("a picture of the demo is far below 4 GiB");
    out.extend(len.to_be_bytes());
    let begin = out.len();
    out.extend(kind);
    out.extend(data);
    let sum = crc32(&out[begin..]);
    out.extend(sum.to_be_bytes());
}

fn zlib(data: &[u8]) -> Vec<u8> {
    // Deflate with a window of 32 KiB, and a check of the two bytes.
    let mut out = vec![0x78, 0x01];
    let blocks = data.chunks(STORED_MAX);
    let last = blocks.len().saturating_sub(1);
    for (index, block) in blocks.enumerate() {
        let len = u16::try_from(block.len()).expect("a block has at most STORED_MAX bytes");
        out.push(u8::from(index == last));
        out.extend(len.to_le_bytes());
        out.extend((!len).to_le_bytes());
        out.extend(block);
    }
    out.extend(adler32(data).to_be_bytes());
    out
}

const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0_u32;
    while index < 256 {
        let mut sum = index;
        let mut bit = 0;
        while bit < 8 {
            sum = if sum & 1 == 1 { sum >> 1 ^ 0xedb8_8320 } else { sum >> 1 };
            bit += 1;
        }
        table[index as usize] = sum;
        index += 1;
    }
    table
};

fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0, |sum, byte| sum >> 8 ^ CRC_TABLE[((sum ^ u32::from(*byte)) & 0xff) as usize])
}

fn adler32(data: &[u8]) -> u32 {
    let (mut a, mut b) = (1_u32, 0_u32);
    // As many bytes as can be summed before 32 bits run over.
    for part in data.chunks(5552) {
        for byte in part {
            a += u32::from(*byte);
            b += a;
        }
        (a, b) = (a % 65521, b % 65521);
    }
    b << 16 | a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_have_their_published_values() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(adler32(b"Wikipedia"), 0x11e6_0398);
        assert_eq!((crc32(b""), adler32(b"")), (0, 1));
    }

    #[test]
    fn a_picture_of_one_pixel_is_this() {
        let png = encode(1, 1, |_, _| [255, 0, 0]);
        let idat = [0x78, 1, 1, 4, 0, 0xfb, 0xff, 0, 255, 0, 0];
        assert_eq!(png[..8], SIGNATURE);
        assert_eq!(png[8..29], *b"\0\0\0\x0dIHDR\0\0\0\x01\0\0\0\x01\x08\x02\0\0\0");
        assert_eq!(png[37..41], *b"IDAT");
        assert_eq!(png[41..52], idat);
        assert_eq!(png[png.len() - 12..], *b"\0\0\0\0IEND\xae\x42\x60\x82");
        assert_eq!(size(&png), Some((1, 1)));
    }

    #[test]
    fn a_photo_has_its_size_and_several_blocks() {
        let png = photo(300, 200);
        assert_eq!(size(&png), Some((300, 200)));
        assert!(png.len() > 300 * 200 * PIXEL);
        assert_eq!(photo(300, 200), png);
        assert_eq!(size(b"GIF89a"), None);
        assert_eq!(size(&png[..20]), None);
    }
}
