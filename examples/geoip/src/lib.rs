//! A handler with a large table: `init` builds it once, at deploy, and every instance begins with it, whatever its size.
//!
//! The table says for each range of IPv4 addresses which country and which autonomous system it belongs to. A real one would be
//! read from a file; this one is made up by arithmetic, so that any size can be had: `GEOIP_MIB` in `hob.toml`, 1 to 1024.
//!
//! ```text
//! hob deploy                                                  # in this folder
//! curl 'http://127.0.0.1:3000/geoip/?ip=192.0.2.1'            # {"ip":"192.0.2.1","first":"192.0.0.249",…,"country":"CN",…}
//! ```

use std::env;
use std::net::Ipv4Addr;
use std::sync::OnceLock;

use hob_sdk::{Error, Request, Response, StatusCode};

/// Size of the table in MiB when `GEOIP_MIB` is not set.
const MIB_DEFAULT: usize = 256;
const MIB_MAX: usize = 1024;
const COUNTRIES: [[u8; 2]; 16] = [
    *b"AR", *b"AU", *b"BR", *b"CA", *b"CN", *b"DE", *b"EG", *b"FR", *b"GB", *b"IN", *b"JP", *b"KE", *b"MX", *b"NG", *b"US",
    *b"ZA",
];

static TABLE: OnceLock<Table> = OnceLock::new();

#[hob_sdk::init]
fn init() -> Result<(), Error> {
    let mib = match env::var("GEOIP_MIB") {
        Ok(text) => size(&text)?,
        Err(env::VarError::NotPresent) => MIB_DEFAULT,
        Err(error) => return Err(error.into()),
    };
    let table = TABLE.get_or_init(|| Table::build(mib));
    hob_sdk::info!("{} ranges, {mib} MiB", table.ranges.len());
    Ok(())
}

fn size(text: &str) -> Result<usize, Error> {
    let size = text.parse().ok().filter(|mib| (1..=MIB_MAX).contains(mib));
    size.ok_or_else(|| Error::msg(format_args!("GEOIP_MIB is '{text}', expected a number of MiB from 1 to {MIB_MAX}")))
}

#[hob_sdk::function]
fn handle(req: Request) -> Result<Response, Error> {
    let table = TABLE.get().ok_or("there is no table: the host did not call hob_init")?;
    let Some(ip) = ip(req.query()) else {
        let why = "ask with ?ip= and an IPv4 address, such as ?ip=192.0.2.1\n";
        return Ok(Response::from(why).with_status(StatusCode::BAD_REQUEST));
    };
    let Entry { first, last, range } = table.look_up(ip);
    let ([a, b], asn) = (range.country.map(char::from), range.asn);
    let json = format!("{{\"ip\":\"{ip}\",\"first\":\"{first}\",\"last\":\"{last}\",\"country\":\"{a}{b}\",\"asn\":{asn}}}\n");
    Ok(Response::new(json).with_header("content-type", "application/json"))
}

fn ip(query: Option<&str>) -> Option<Ipv4Addr> {
    let mut pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    pairs.find(|(key, _)| key == "ip").and_then(|(_, ip)| ip.parse().ok())
}

/// Addresses from `start` up to the next range. 12 bytes.
struct Range {
    start: u32,
    asn: u32,
    country: [u8; 2],
}

/// Ranges in the order of their starts; the first starts at 0.0.0.0, so every address is in one.
struct Table {
    ranges: Vec<Range>,
    /// For each value of the upper 16 bits of an address, the number of ranges that start below it; at the end that of all. A
    /// search then stays among neighbours: it touches two or three pages of memory, and not one for each halving of the table.
    below: Vec<u32>,
}

/// What the table says about an address.
struct Entry<'a> {
    first: Ipv4Addr,
    last: Ipv4Addr,
    range: &'a Range,
}

impl Table {
    /// A table of about `mib` MiB: equal slots, in each of which a range starts somewhere.
    fn build(mib: usize) -> Self {
        let count = u32::try_from((mib << 20) / size_of::<Range>()).expect("a table of at most 1 GiB");
        let slot = u32::MAX / count;
        let ranges: Vec<_> = (0..count)
            .map(|n| {
                // The multiplier of Knuth's multiplicative hashing.
                let hash = n.wrapping_mul(2_654_435_761);
                let start = n * slot + (hash >> 8) % slot;
                let country = COUNTRIES[(hash >> 28) as usize];
                Range { start: if n == 0 { 0 } else { start }, asn: 1 + (hash >> 16), country }
            })
            .collect();
        let mut below = Vec::with_capacity((1 << 16) + 1);
        let mut index = 0;
        for upper in 0..1 << 16 {
            index += ranges[index as usize..].iter().take_while(|range| range.start >> 16 < upper).count() as u32;
            below.push(index);
        }
        below.push(count);
        Self { ranges, below }
    }

    fn look_up(&self, ip: Ipv4Addr) -> Entry<'_> {
        let address = ip.to_bits();
        let upper = (address >> 16) as usize;
        let (from, to) = (self.below[upper] as usize, self.below[upper + 1] as usize);
        // Not 0: the first range starts at the first address.
        let behind = from + self.ranges[from..to].partition_point(|range| range.start <= address);
        let range = &self.ranges[behind - 1];
        let last = self.ranges.get(behind).map_or(u32::MAX, |next| next.start - 1);
        Entry { first: range.start.into(), last: last.into(), range }
    }
}

#[cfg(test)]
mod tests {
    use hob_sdk::http;

    use super::*;

    #[test]
    fn every_address_has_the_range_that_a_plain_search_finds() {
        let table = Table::build(1);
        assert_eq!((size_of::<Range>() * table.ranges.len()) >> 10, 1023);
        assert!(table.ranges.is_sorted_by_key(|range| range.start));
        let starts = table.ranges.iter().map(|range| range.start);
        for address in starts.step_by(37).chain((0..10_000).map(|n: u32| n.wrapping_mul(0x9E37_79B9))).chain([u32::MAX]) {
            for address in [address.saturating_sub(1), address] {
                let behind = table.ranges.partition_point(|range| range.start <= address);
                let entry = table.look_up(address.into());
                assert_eq!(entry.first.to_bits(), table.ranges[behind - 1].start);
                assert!(entry.first.to_bits() <= address && address <= entry.last.to_bits());
                assert_eq!(entry.range.asn, table.ranges[behind - 1].asn);
            }
        }
    }

    #[test]
    fn it_answers_after_init_and_says_so_before() {
        let get = |query: &str| handle(http::Request::get(format!("/{query}")).body("").unwrap().into());
        assert!(get("?ip=192.0.2.1").unwrap_err().to_string().contains("hob_init"));
        TABLE.get_or_init(|| Table::build(1));
        let text = |query: &str| String::from_utf8(get(query).unwrap().into_http().unwrap().into_body()).unwrap();
        let expected = r#"{"ip":"0.0.255.9","first":"0.0.0.0","last":"0.1.119.120","country":"AR","asn":1}"#;
        assert_eq!(text("?a=b&ip=0.0.255.9"), format!("{expected}\n"));
        for query in ["", "?ip=", "?ip=1.2.3", "?ip=1.2.3.256", "?ip=::1"] {
            assert_eq!(get(query).unwrap().status(), StatusCode::BAD_REQUEST, "{query}");
        }
    }

    #[test]
    fn a_size_that_is_none_is_refused_by_init() {
        for bad in ["", "x", "0", "1025", "-1", "1.5"] {
            assert!(size(bad).unwrap_err().to_string().contains("from 1 to 1024"), "{bad}");
        }
        assert_eq!((size("1").unwrap(), size("1024").unwrap()), (1, MIB_MAX));
    }
}
