//! URLs that lead, or that somebody may take to lead, to this machine, its network or its cloud.

/// Hosts of URLs. Each is an address of this machine, of its network, or of its cloud, or looks like one to somebody.
const HOSTS: [&str; 4] = [
    // As it is usually written.
    "127.0.0.1 127.0.0.2 127.1.2.3 127.255.255.254 0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1
     100.100.100.200 169.254.169.254 169.254.170.2 169.254.0.1 172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.192
     192.0.2.1 192.88.99.1 192.168.0.1 192.168.255.255 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1
     239.255.255.255 240.0.0.1 255.255.255.255 168.63.129.16",
    // As numbers, in other bases, with fewer parts: inet_aton takes all of these.
    "2130706433 0x7f000001 0X7F000001 017700000001 127.1 127.0.1 0x7f.1 0x7f.0.0.1 0177.0.0.1 0177.1 127.0.0.01
     127.00.0.1 0 00000000 2852039166 0xa9fea9fe 0251.0376.0251.0376 169.16689662 3232235521 127.0.0.1. 127.0.0.256
     1.2.3.4.5 4294967297 18446744071544078337",
    // IPv6, and IPv4 inside of it.
    "[::1] [0:0:0:0:0:0:0:1] [::] [::127.0.0.1] [::7f00:1] [::ffff:127.0.0.1] [::ffff:7f00:1]
     [0:0:0:0:0:ffff:127.0.0.1] [::ffff:0:127.0.0.1] [::ffff:169.254.169.254] [::ffff:a9fe:a9fe] [::ffff:10.0.0.1]
     [64:ff9b::127.0.0.1] [64:ff9b::a9fe:a9fe] [64:ff9b:1::127.0.0.1] [2002:7f00:1::] [2002:a9fe:a9fe::1]
     [2001:0:7f00:1::1] [2001:0:808:808::80ff:fffe] [2600::5efe:7f00:1] [fe80::1] [fe80::1%25lo] [fe80::5efe:a00:1]
     [fc00::1] [fd00:ec2::254] [fec0::1] [ff02::1] [100::1] [2001:db8::1] [3fff::1] [5f00::1] [::1 ::1",
    // Names, and users that look like hosts.
    "localhost LOCALHOST localhost. user@127.0.0.1 example.com@127.0.0.1 user:pass@localhost 127.0.0.1%2f %31%32%37.0.0.1",
];

/// All of them behind one port, and a few with something at their end that a parser may trip over.
pub(crate) fn urls(port: u16) -> Vec<String> {
    let mut urls: Vec<String> =
        HOSTS.iter().flat_map(|hosts| hosts.split_whitespace()).map(|host| format!("http://{host}:{port}/")).collect();
    for rest in ["\\@example.com/", "#@example.com/", "?@example.com/", "/../", "/%0d%0ahost:x", "/@example.com"] {
        urls.push(format!("http://127.0.0.1:{port}{rest}"));
    }
    urls.push(format!("http://example.com@127.0.0.1:{port}@127.0.0.1:{port}/"));
    urls.push(format!("http://127.0.0.1:{port}:80/"));
    urls.push(format!("http:127.0.0.1:{port}"));
    urls.push(format!("//127.0.0.1:{port}/"));
    urls.push(format!("https://127.0.0.1:{port}/"));
    urls.push(format!("ftp://127.0.0.1:{port}/"));
    urls.push("file:///etc/passwd".into());
    urls
}
