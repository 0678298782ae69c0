//! An HTTP/1 parser of a test's own: what of a stream of bytes is a request, by RFC 9112 alone.
//!
//! It knows nothing of Hob, hyper or httparse and needs nothing but the standard library, so a fuzz target can include this file as it is.
//! It reads a whole stream at once, and is slow and plain. Where the standard leaves a choice, the stricter one is taken, but for two:
//! a bare LF ends a line of a head (2.2), and a message with both framings has the chunks (6.3), after which nothing is believed.

/// A request as far as framing goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    /// Head and body are there. The length of the body without its framing.
    Whole(u64),
    /// The head is good; the body breaks a rule.
    BadBody,
    /// All of the body is there; the trailers behind it break a rule. A server that is lenient with them believes nothing after them.
    BadTrailers,
    /// The head is good; the stream ends within the body.
    CutBody,
}

/// What follows the last request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Nothing. The connection can go on.
    Open,
    /// Part of a head, or of a body.
    Cut,
    /// What is no request, or something after which nothing is believed. The server must close.
    Close,
}

/// All requests of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stream {
    pub(crate) requests: Vec<Request>,
    pub(crate) end: End,
}

/// Reads a stream.
pub(crate) fn parse(mut input: &[u8]) -> Stream {
    let mut requests = Vec::new();
    loop {
        // Empty lines before a request are passed over (2.2).
        while let [b'\n', rest @ ..] | [b'\r', b'\n', rest @ ..] = input {
            input = rest;
        }
        if input.is_empty() {
            return Stream { requests, end: End::Open };
        }
        let (mut head, rest) = match head(input) {
            Ok(found) => found,
            Err(end) => return Stream { requests, end },
        };
        let (request, rest) = match head.framing {
            Framing::Length(len) if len <= rest.len() as u64 => {
                (Request::Whole(len), rest.split_at(usize::try_from(len).unwrap()).1)
            }
            Framing::Length(_) => (Request::CutBody, rest),
            Framing::Chunks => match chunks(rest) {
                Ok((len, has_trailers, rest)) => {
                    // Where they end is told in more than one way.
                    head.is_last |= has_trailers;
                    (Request::Whole(len), rest)
                }
                Err((_, End::Cut)) => (Request::CutBody, rest),
                Err((Part::Chunks, _)) => (Request::BadBody, rest),
                Err((Part::Trailers, _)) => (Request::BadTrailers, rest),
            },
        };
        requests.push(request);
        match request {
            Request::Whole(_) if !head.is_last => input = rest,
            Request::CutBody => return Stream { requests, end: End::Cut },
            Request::Whole(_) | Request::BadBody | Request::BadTrailers => return Stream { requests, end: End::Close },
        }
    }
}

enum Framing {
    Length(u64),
    Chunks,
}

struct Head {
    framing: Framing,
    /// Nothing after this request is read.
    is_last: bool,
}

/// A line of a head without its end, and what follows. A CR that ends no line is an error.
fn line(input: &[u8]) -> Result<(&[u8], &[u8]), End> {
    let Some(len) = input.iter().position(|byte| *byte == b'\n') else {
        // What is wrong already does not get better.
        let cr = input.iter().position(|byte| *byte == b'\r');
        return Err(if cr.is_some_and(|at| at + 1 < input.len()) { End::Close } else { End::Cut });
    };
    let line = &input[..len];
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.contains(&b'\r') { Err(End::Close) } else { Ok((line, &input[len + 1..])) }
}

fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

/// Request line and fields (3, 5), what they say of the body (6.3), and what follows.
fn head(input: &[u8]) -> Result<(Head, &[u8]), End> {
    let (first, mut input) = line(input)?;
    let mut parts = first.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(End::Close);
    };
    let is_new = match version {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        _ => return Err(End::Close),
    };
    if !is_token(method) || !target.iter().all(u8::is_ascii_graphic) {
        return Err(End::Close);
    }
    let mut fields = Fields::default();
    loop {
        let (field, rest) = line(input)?;
        input = rest;
        if field.is_empty() {
            break;
        }
        fields.add(field)?;
    }
    let authority = authority(method, target)?;
    let head = fields.frame(is_new, authority)?;
    Ok((head, input))
}

/// The four forms of a target (3.2): who is asked, in the absolute form. A tunnel is refused.
fn authority<'a>(method: &[u8], target: &'a [u8]) -> Result<Option<&'a [u8]>, End> {
    if method == b"CONNECT" {
        return Err(End::Close);
    }
    if target.starts_with(b"/") || (method == b"OPTIONS" && target == b"*") {
        return Ok(None);
    }
    // The scheme is the same however it is spelled (RFC 3986, 3.1).
    let scheme = |scheme: &[u8]| target.split_at_checked(scheme.len()).filter(|(found, _)| found.eq_ignore_ascii_case(scheme));
    let (_, rest) = scheme(b"http://").or_else(|| scheme(b"https://")).ok_or(End::Close)?;
    let authority = rest.split(|byte| b"/?#".contains(byte)).next().unwrap_or_default();
    if authority.is_empty() { Err(End::Close) } else { Ok(Some(authority)) }
}

#[derive(Default)]
struct Fields<'a> {
    hosts: Vec<&'a [u8]>,
    lengths: Vec<&'a [u8]>,
    codings: Vec<&'a [u8]>,
    connection: Vec<Vec<u8>>,
}

impl<'a> Fields<'a> {
    /// One field line (5.1). No white space before the colon, no folding.
    fn add(&mut self, field: &'a [u8]) -> Result<(), End> {
        let colon = field.iter().position(|byte| *byte == b':').ok_or(End::Close)?;
        let (name, value) = (&field[..colon], trim(&field[colon + 1..]));
        if !is_token(name) || value.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f) {
            return Err(End::Close);
        }
        match name.to_ascii_lowercase().as_slice() {
            b"host" => self.hosts.push(value),
            b"content-length" => self.lengths.push(value),
            b"transfer-encoding" => self.codings.push(value),
            b"connection" => {
                self.connection.extend(value.split(|byte| *byte == b',').map(|word| trim(word).to_ascii_lowercase()))
            }
            _ => {}
        }
        Ok(())
    }

    fn frame(&self, is_new: bool, authority: Option<&[u8]>) -> Result<Head, End> {
        // No host is known by an impossible name (3.2), and an address of http has one (RFC 9110, 4.2.1).
        if !self.hosts.iter().copied().chain(authority).all(is_host) || authority.is_some_and(|authority| authority[0] == b':') {
            return Err(End::Close);
        }
        match self.hosts.as_slice() {
            [] if is_new => return Err(End::Close),
            [] => {}
            [host] if authority.is_none_or(|authority| authority.eq_ignore_ascii_case(host)) => {}
            _ => return Err(End::Close),
        }
        let says = |word: &[u8]| self.connection.iter().any(|found| found == word);
        let is_last = says(b"close") || !(is_new || says(b"keep-alive"));
        match self.codings.as_slice() {
            [] => Ok(Head { framing: Framing::Length(self.length()?), is_last }),
            [coding] if is_new && coding.eq_ignore_ascii_case(b"chunked") => {
                // Both: an attempt, or a broken proxy on the way.
                Ok(Head { framing: Framing::Chunks, is_last: is_last || !self.lengths.is_empty() })
            }
            _ => Err(End::Close),
        }
    }

    fn length(&self) -> Result<u64, End> {
        let mut len = None;
        for value in &self.lengths {
            if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
                return Err(End::Close);
            }
            let found: u64 = std::str::from_utf8(value).unwrap().parse().map_err(|_| End::Close)?;
            if len.is_some_and(|len| len != found) {
                return Err(End::Close);
            }
            len = Some(found);
        }
        Ok(len.unwrap_or_default())
    }
}

/// `uri-host [ ":" port ]` (RFC 9110, 7.2), in the words of RFC 3986 (3.2.2, 3.2.3). Stricter than that: no comma, of which others make lists, no
/// address of a version to come, no name with an empty label, and no port that there is not.
fn is_host(text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else { return false };
    let without_digits = text.trim_end_matches(|c: char| c.is_ascii_digit());
    let (host, port) = match without_digits.strip_suffix(':') {
        Some(host) => (host, &text[without_digits.len()..]),
        None => (text, ""),
    };
    let port = port.trim_start_matches('0');
    let is_port = port.is_empty() || (port.len() <= 5 && port.parse::<u32>().unwrap() < 1 << 16);
    let inside = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    is_port && inside.map_or_else(|| is_reg_name(host) && !host.starts_with('.') && !host.contains(".."), is_ipv6)
}

/// `*( unreserved / pct-encoded / sub-delims )`, of which an IPv4 address is a case.
fn is_reg_name(name: &str) -> bool {
    let mut parts = name.split('%');
    let is_plain = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "-._~!$&'()*+;=".contains(c));
    // Each part but the first begins with the two digits of what is encoded.
    parts.next().is_none_or(is_plain)
        && parts.all(|part| part.len() >= 2 && part.chars().take(2).all(|c| c.is_ascii_hexdigit()) && is_plain(part))
}

/// `IPv6address`: eight pieces of 16 bits, the last two perhaps as an IPv4 address, or fewer around one `::`.
fn is_ipv6(text: &str) -> bool {
    match text.split_once("::") {
        None => pieces(text) == Some(8),
        Some((before, _)) if before.contains('.') => false,
        Some((before, behind)) => pieces(before).zip(pieces(behind)).is_some_and(|(before, behind)| before + behind <= 7),
    }
}

fn pieces(text: &str) -> Option<usize> {
    if text.is_empty() {
        return Some(0);
    }
    let (first, last) = text.rsplit_once(':').map_or((None, text), |(first, last)| (Some(first), last));
    let is_h16 = |piece: &str| (1..=4).contains(&piece.len()) && piece.chars().all(|c| c.is_ascii_hexdigit());
    let before = first.map_or(Some(0), |first| first.split(':').all(is_h16).then(|| first.split(':').count()))?;
    let octet = |text: &str| text.parse::<u8>().is_ok_and(|octet| octet.to_string() == text);
    if is_h16(last) {
        Some(before + 1)
    } else {
        (last.split('.').count() == 4 && last.split('.').all(octet)).then_some(before + 2)
    }
}

fn trim(text: &[u8]) -> &[u8] {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = text.iter().position(|byte| !is_space(byte)).unwrap_or(text.len());
    let end = text.iter().rposition(|byte| !is_space(byte)).map_or(start, |at| at + 1);
    &text[start..end]
}

/// What of a body in chunks is wrong.
enum Part {
    Chunks,
    Trailers,
}

/// A body in chunks (7.1): its length, whether it has trailers, and what follows. Its lines end with CR LF, and nothing else.
fn chunks(input: &[u8]) -> Result<(u64, bool, &[u8]), (Part, End)> {
    let (len, input) = data(input).map_err(|end| (Part::Chunks, end))?;
    let (has_trailers, input) = trailers(input).map_err(|end| (Part::Trailers, end))?;
    Ok((len, has_trailers, input))
}

fn data(mut input: &[u8]) -> Result<(u64, &[u8]), End> {
    let mut sum: u64 = 0;
    loop {
        let (size, rest) = crlf_line(input)?;
        let digits = size.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let len = std::str::from_utf8(&size[..digits])
            .ok()
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .ok_or(End::Close)?;
        let extension = trim(&size[digits..]);
        if !(extension.is_empty() || extension.starts_with(b";")) {
            return Err(End::Close);
        }
        input = rest;
        if len == 0 {
            return Ok((sum, input));
        }
        if len > input.len() as u64 {
            return Err(End::Cut);
        }
        let (_, rest) = input.split_at(usize::try_from(len).unwrap());
        input = match rest {
            [b'\r', b'\n', rest @ ..] => rest,
            [] | [b'\r'] => return Err(End::Cut),
            _ => return Err(End::Close),
        };
        sum = sum.checked_add(len).ok_or(End::Close)?;
    }
}

fn trailers(mut input: &[u8]) -> Result<(bool, &[u8]), End> {
    let mut has_trailers = false;
    loop {
        let (trailer, rest) = crlf_line(input)?;
        input = rest;
        if trailer.is_empty() {
            return Ok((has_trailers, input));
        }
        has_trailers = true;
        Fields::default().add(trailer)?;
    }
}

fn crlf_line(input: &[u8]) -> Result<(&[u8], &[u8]), End> {
    let Some(at) = input.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else { return Err(End::Cut) };
    match &input[at..] {
        [b'\r', b'\n', rest @ ..] => Ok((&input[..at], rest)),
        [b'\r'] => Err(End::Cut),
        _ => Err(End::Close),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_read_as_the_standard_says() {
        let host = "Host: a\r\n";
        for (stream, requests, end) in [
            (format!("GET / HTTP/1.1\r\n{host}\r\n\r\nGET / HTTP/1.1\n{host}\n"), vec![Request::Whole(0); 2], End::Open),
            (format!("POST / HTTP/1.1\r\n{host}Content-Length: 3\r\n\r\nabcGET"), vec![Request::Whole(3)], End::Cut),
            (format!("POST / HTTP/1.1\r\n{host}Content-Length: 3\r\n\r\nab"), vec![Request::CutBody], End::Cut),
            (
                format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n1;a=b\r\nx\r\n0\r\nt: u\r\n\r\n"),
                vec![Request::Whole(1)],
                End::Close,
            ),
            (
                format!("POST / HTTP/1.1\r\n{host}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET"),
                vec![Request::Whole(0)],
                End::Close,
            ),
            (format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n1\nx"), vec![Request::BadBody], End::Close),
            (
                format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n0\r\nt: u\n\r\nGET"),
                vec![Request::BadTrailers],
                End::Close,
            ),
            (format!("GET / HTTP/1.1\r\n{host}{host}\r\n"), vec![], End::Close),
            ("GET / HTTP/1.1\r\n\r\n".into(), vec![], End::Close),
            ("GET / HTTP/1.0\r\n\r\nGET".into(), vec![Request::Whole(0)], End::Close),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n".into(), vec![], End::Close),
            ("GET / HTTP/1.0\r\nHost: a@b\r\n\r\n".into(), vec![], End::Close),
            ("GET / HTTP/1.1\r\nHost:\r\n\r\n".into(), vec![Request::Whole(0)], End::Open),
            ("GET http://a@b/ HTTP/1.1\r\nHost: a@b\r\n\r\n".into(), vec![], End::Close),
            ("GET http://:80/ HTTP/1.1\r\nHost: :80\r\n\r\n".into(), vec![], End::Close),
            ("GET http://[::1]:80/ HTTP/1.1\r\nHost: [::1]:80\r\n\r\n".into(), vec![Request::Whole(0)], End::Open),
            (format!("GET / HTTP/1.1\r\n{host} folded\r\n\r\n"), vec![], End::Close),
        ] {
            assert_eq!(parse(stream.as_bytes()), Stream { requests, end }, "{stream:?}");
        }
    }

    #[test]
    fn hosts_are_what_the_grammar_says() {
        for good in [
            "",
            ":",
            "a",
            "A.b-c_d~:",
            "%41%c3%BC",
            "!$&'()*+;=:1",
            "1.2.3.4:65535",
            "a.b.:1",
            "a:0065535",
            "[::]",
            "[::1]:80",
            "[1::]:",
            "[1:2:3:4:5:6:7:8]",
            "[1:2:3:4:5:6:1.2.3.4]",
            "[1::7:1.2.3.4]",
            "[1:2:3::5:6:7:ABCD]",
        ] {
            assert!(is_host(good.as_bytes()), "{good}");
        }
        for bad in [
            "a b",
            "a/b",
            "a@b",
            "a,b",
            ".",
            ".a",
            "a..",
            "a..b:1",
            "a\\b",
            "a\"",
            "a|",
            "\u{fc}",
            "%",
            "%4",
            "%4g",
            "%\u{fc}",
            "a:65536",
            "a:100000",
            "a:b",
            "a:1:1",
            "::1",
            "[::1",
            "::1]",
            "[]",
            "[]:1",
            "[::1]1",
            "[::1]:b",
            "[1]",
            "[1.2.3.4]",
            "[:1]",
            "[1:]",
            "[:::]",
            "[1::2::3]",
            "[1:2:3:4:5:6:7]",
            "[1:2:3:4::5:6:7:8]",
            "[1:2:3:4:5:6:7:1.2.3.4]",
            "[1.2.3.4::]",
            "[::1.2.3]",
            "[::1.2.3.04]",
            "[::12345]",
            "[::g]",
            "[::1%25lo]",
            "[v1.a]",
        ] {
            assert!(!is_host(bad.as_bytes()), "{bad:?}");
        }
        assert!(!is_host(b"\xff"));
    }
}
