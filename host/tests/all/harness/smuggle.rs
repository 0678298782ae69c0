//! Streams of bytes that two parsers might read in two ways: a corpus for tests and for fuzzing.
//!
//! Like `strict.rs` it needs nothing but the standard library.

/// All of it, for a target that answers. Each ends in a request that only one of two readers may see.
pub(crate) fn corpus(target: &str) -> Vec<Vec<u8>> {
    let mut all = Corpus { target: target.into(), streams: Vec::new() };
    all.codings();
    all.names();
    all.lengths();
    all.hosts();
    all.lines();
    all.ends();
    all.chunks();
    all.others();
    all.streams
}

struct Corpus {
    target: String,
    streams: Vec<Vec<u8>>,
}

impl Corpus {
    /// A stream; then the same with another request behind it.
    fn add(&mut self, stream: impl AsRef<[u8]>) {
        let stream = stream.as_ref();
        self.streams.push(stream.to_vec());
        let last = format!("GET {}?last HTTP/1.1\r\nHost: localhost\r\n\r\n", self.target);
        self.streams.push([stream, last.as_bytes()].concat());
    }

    /// A POST with these lines and this body.
    fn post(&mut self, lines: &str, body: &str) {
        let stream = format!("POST {} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n{body}", self.target);
        self.add(stream);
    }

    fn codings(&mut self) {
        for coding in [
            "chunked",
            "Chunked",
            "CHUNKED",
            "\tchunked",
            "chunked\t",
            "  chunked  ",
            "chunked,",
            ",chunked",
            "chunked, chunked",
            "chunked;q=1",
            "chunked;",
            "identity",
            "gzip",
            "gzip, chunked",
            "chunked, gzip",
            "identity, chunked",
            "xchunked",
            "chunkedx",
            "chunk",
            "\u{b}chunked",
            "chunked\u{c}",
            "\"chunked\"",
            "'chunked'",
            "chu\0nked",
            "c hunked",
            "",
            "deflate,chunked",
            "\u{e9}chunked",
            "\r\n chunked",
            "chunked\r\n\tx",
            "\r\n\tchunked",
            "chunked\rX: y",
            "chunked\nX: y",
        ] {
            let line = format!("Transfer-Encoding: {coding}\r\n");
            self.post(&line, "0\r\n\r\n");
            // Before and behind the other framing, with a body that ends in two places.
            self.post(&format!("Content-Length: 5\r\n{line}"), "0\r\n\r\n");
            self.post(&format!("{line}Content-Length: 30\r\n"), "0\r\n\r\nGET /evil HTTP/1.1\r\nX: y\r\n\r\n");
        }
        for (one, two) in
            [("chunked", "chunked"), ("chunked", "identity"), ("identity", "chunked"), ("gzip", "chunked"), ("", "chunked")]
        {
            self.post(&format!("Transfer-Encoding: {one}\r\nTransfer-Encoding: {two}\r\n"), "0\r\n\r\n");
        }
    }

    fn names(&mut self) {
        for name in [
            "Transfer-Encoding ",
            "Transfer_Encoding",
            "Transfer-Encoding\t",
            " Transfer-Encoding",
            "Transfer Encoding",
            "Transfer-Encoding\0",
            "\0Transfer-Encoding",
            "TRANSFER-ENCODING",
            "Transfer-Encoding\r",
            "\u{e9}Transfer-Encoding",
            "Transfer-Encoding:",
            "X:\r\nTransfer-Encoding",
            "X\nTransfer-Encoding",
            "X: y\nTransfer-Encoding",
            "X: y\rTransfer-Encoding",
            "",
            "\"Transfer-Encoding\"",
            "Transfer-Encoding(",
            "X: y\r\n Transfer-Encoding",
        ] {
            self.post(&format!("{name}: chunked\r\n"), "0\r\n\r\n");
            self.post(&format!("Content-Length: 5\r\n{name}: chunked\r\n"), "0\r\n\r\n");
        }
        for name in [
            "Content-Length ",
            "Content_Length",
            "Content-Length\t",
            " Content-Length",
            "CONTENT-LENGTH",
            "Content-Length\0",
            "Content Length",
        ] {
            self.post(&format!("{name}: 5\r\n"), "hello");
        }
    }

    fn lengths(&mut self) {
        for len in [
            "5",
            "05",
            "000005",
            "+5",
            "-5",
            "5.0",
            "5e0",
            "0x5",
            "5 ",
            "\t5",
            "5,",
            "5, 5",
            "5,5",
            "5 5",
            "",
            " ",
            "five",
            "5;",
            "\"5\"",
            "5\0",
            "18446744073709551615",
            "18446744073709551616",
            "18446744073709551621",
            "99999999999999999999999",
            "5\r\n 5",
            "-0",
            "\u{0665}",
        ] {
            self.post(&format!("Content-Length: {len}\r\n"), "hello");
        }
        for (one, two) in [("5", "5"), ("5", "6"), ("5", "0"), ("0", "5"), ("5", "05"), ("5", "x"), ("x", "5"), ("5", "")] {
            self.post(&format!("Content-Length: {one}\r\nContent-Length: {two}\r\n"), "hello");
        }
        let get = format!("GET {} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello", self.target);
        self.add(get);
    }

    fn hosts(&mut self) {
        let target = self.target.clone();
        for hosts in [
            "",
            "Host: localhost\r\nHost: localhost\r\n",
            "Host: localhost\r\nHost: evil\r\n",
            "Host: localhost\r\nhOST: localhost\r\n",
            "Host : localhost\r\n",
            " Host: localhost\r\n",
            "Host\0: localhost\r\n",
            "Host: localhost\r\n evil\r\n",
            "X: y\r\nHost: localhost\r\n",
        ] {
            self.add(format!("GET {target} HTTP/1.1\r\n{hosts}\r\n"));
            self.add(format!("GET {target} HTTP/1.0\r\n{hosts}\r\n"));
        }
        for (authority, host) in [
            ("localhost", "localhost"),
            ("LOCALHOST", "localhost"),
            ("evil", "localhost"),
            ("localhost:80", "localhost"),
            ("a@localhost", "localhost"),
        ] {
            self.add(format!("GET http://{authority}{target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        }
        self.add(format!("GET http://localhost{target} HTTP/1.1\r\n\r\n"));
        self.odd_hosts();
    }

    /// Names that are one host to some readers, and another or none to others; and good ones that look like them.
    fn odd_hosts(&mut self) {
        let target = self.target.clone();
        for host in [
            "local host",
            "localhost/x",
            "a b/c",
            "a@localhost",
            "localhost,evil",
            "localhost,",
            "localhost\\evil",
            "localhost#",
            "localhost?",
            "http://localhost",
            "\u{e9}",
            "localhost..",
            ".localhost",
            "local..host",
            ".",
            "localhost:",
            "localhost:65535",
            "localhost:0080",
            "localhost:65536",
            "localhost:99999",
            "localhost:x",
            "localhost:80:80",
            "127.0.0.1:80",
            "[::1]",
            "[::1]:80",
            "[0:0:0:0:0:0:0:1]:",
            "[::1",
            "::1",
            "[::1]x",
            "[::1%25lo]",
            "[v1.a]",
            "[localhost]",
            "%",
            "%zz",
            ":x",
        ] {
            for version in ["HTTP/1.1", "HTTP/1.0"] {
                self.add(format!("GET {target} {version}\r\nHost: {host}\r\n\r\n"));
                self.add(format!("GET http://{host}{target} {version}\r\nHost: {host}\r\n\r\n"));
            }
            // With these its path would be another.
            if !host.contains(['/', '?', '#']) {
                self.add(format!("GET http://{host}{target} HTTP/1.0\r\n\r\n"));
            }
        }
        self.add([format!("GET {target} HTTP/1.1\r\nHost: ").as_bytes(), b"\xff\r\n\r\n"].concat());
    }

    fn lines(&mut self) {
        let target = self.target.clone();
        let host = "Host: localhost\r\n";
        for version in [
            "HTTP/1.0",
            "HTTP/1.2",
            "HTTP/0.9",
            "HTTP/2.0",
            "HTTP/3.0",
            "http/1.1",
            "HTTP/1.1 ",
            "HTTP/01.1",
            "HTTP/1.10",
            "HTTP/1.1\t",
            "HTTP/1.1\0",
            "HTTP/1",
            "",
            "HTTP/1.1 x",
        ] {
            self.add(format!("GET {target} {version}\r\n{host}\r\n"));
        }
        for first in [
            format!("GET  {target} HTTP/1.1"),
            format!("GET {target}  HTTP/1.1"),
            format!("GET\t{target} HTTP/1.1"),
            format!(" GET {target} HTTP/1.1"),
            format!("GET {target}\tHTTP/1.1"),
            format!("GET {target} x HTTP/1.1"),
            format!("GET {target}\0 HTTP/1.1"),
            format!("G\0ET {target} HTTP/1.1"),
            format!("GET {target}\u{b}HTTP/1.1"),
            format!("GET {target}"),
            "GET HTTP/1.1".into(),
            "GET".into(),
            "CONNECT localhost:80 HTTP/1.1".into(),
            format!("CONNECT {target} HTTP/1.1"),
            "PRI * HTTP/2.0".into(),
            "GET * HTTP/1.1".into(),
            "GET localhost HTTP/1.1".into(),
            format!("G(T {target} HTTP/1.1"),
            format!("get {target} HTTP/1.1"),
        ] {
            self.add(format!("{first}\r\n{host}\r\n"));
        }
    }

    fn ends(&mut self) {
        let target = self.target.clone();
        let host = "Host: localhost\r\n";
        for (before, end) in [
            ("\r\n", "\r\n"),
            ("\n", "\r\n"),
            ("\r\n\r\n\n", "\r\n"),
            ("\r", "\r\n"),
            (" \r\n", "\r\n"),
            ("", "\n"),
            ("", "\r"),
            ("", "\r\r\n"),
            ("", "\n\r\n"),
            ("\0", "\r\n"),
        ] {
            self.add(format!("{before}GET {target} HTTP/1.1{end}Host: localhost{end}{end}"));
            self.add(format!("{before}POST {target} HTTP/1.1{end}Host: localhost{end}Content-Length: 5{end}{end}hello"));
        }
        for line in [
            "X",
            "X:",
            ":",
            ": y",
            "X: y\0",
            "X: \u{7f}",
            "X: y\u{8}",
            "X: \u{e9}",
            "X Y: z",
            "X: y\r\n\tz",
            "\tX: y",
            "X: y\r",
            "X;: y",
            "X_Y: z",
            "X: y\r\n\r",
        ] {
            self.add(format!("GET {target} HTTP/1.1\r\n{host}{line}\r\n\r\n"));
        }
    }

    fn chunks(&mut self) {
        for body in [
            "5\r\nhello\r\n0\r\n\r\n",
            "05\r\nhello\r\n00\r\n\r\n",
            "5 \r\nhello\r\n0\r\n\r\n",
            "5\t\r\nhello\r\n0\r\n\r\n",
            " 5\r\nhello\r\n0\r\n\r\n",
            "5;a=b\r\nhello\r\n0;c\r\n\r\n",
            "5 ;a\r\nhello\r\n0\r\n\r\n",
            "5;a=\"b;c\"\r\nhello\r\n0\r\n\r\n",
            "5;\r\nhello\r\n0\r\n\r\n",
            "5;a\nb\r\nhello\r\n0\r\n\r\n",
            "5;a\rb\r\nhello\r\n0\r\n\r\n",
            "5\nhello\r\n0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "5\r\nhello0\r\n\r\n",
            "5\rhello\r\n0\r\n\r\n",
            "5\r\nhello\r\n0\n\n",
            "0x5\r\nhello\r\n0\r\n\r\n",
            "+5\r\nhello\r\n0\r\n\r\n",
            "-5\r\nhello\r\n0\r\n\r\n",
            "5.\r\nhello\r\n0\r\n\r\n",
            "5,5\r\nhello\r\n0\r\n\r\n",
            "5g\r\nhello\r\n0\r\n\r\n",
            "g\r\nhello\r\n0\r\n\r\n",
            "\r\n5\r\nhello\r\n0\r\n\r\n",
            "4\r\nhello\r\n0\r\n\r\n",
            "6\r\nhello\r\n0\r\n\r\n",
            "5\0\r\nhello\r\n0\r\n\r\n",
            "ffffffffffffffff\r\nhello",
            "10000000000000005\r\nhello\r\n0\r\n\r\n",
            "100000000000000000\r\nhello\r\n0\r\n\r\n",
            "5\r\nhello\r\n",
            "5\r\nhel",
            "5",
            "",
            "0\r\n",
            "0\r\nX: y\r\n\r\n",
            "0\r\nContent-Length: 50\r\n\r\n",
            "0\r\nTransfer-Encoding: chunked\r\n\r\n",
            "0\r\nHost: evil\r\n\r\n",
            "0\r\nX y\r\n\r\n",
            "0\r\n X: y\r\n\r\n",
            "0\r\nX: y\0\r\n\r\n",
            "0\r\nX: y\r\n z\r\n\r\n",
            "A\r\n0123456789\r\n0\r\n\r\n",
            "a\r\n0123456789\r\n0\r\n\r\n",
        ] {
            self.post("Transfer-Encoding: chunked\r\n", body);
        }
    }

    fn others(&mut self) {
        let target = self.target.clone();
        for lines in [
            "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
            "Upgrade: websocket\r\nConnection: upgrade\r\n",
            "Upgrade: TLS/1.0\r\n",
            "Connection: close\r\n",
            "Connection: Close, x\r\n",
            "Connection: close\r\nConnection: keep-alive\r\n",
            "Connection: content-length\r\n",
            "Connection: host\r\n",
            "Expect: 100-continue\r\n",
            "Expect: x\r\n",
            "TE: trailers\r\nConnection: TE\r\n",
            "Trailer: Content-Length\r\n",
        ] {
            self.post(&format!("{lines}Content-Length: 5\r\n"), "hello");
            self.post(lines, "");
        }
        for lines in [
            "Connection: keep-alive\r\n",
            "Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\n",
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Content-Length: 5\r\n",
            "Connection: keep-alive\r\nContent-Length: 5\r\n",
        ] {
            self.add(format!("POST {target} HTTP/1.0\r\nHost: localhost\r\n{lines}\r\n0\r\n\r\n"));
        }
    }
}
