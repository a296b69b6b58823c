//! Which hosts and addresses a guest may call.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// A network in CIDR notation, such as `10.0.0.0/8` or `fd00::/8`; an address alone is a network of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    base: IpAddr,
    bits: u8,
}

impl Network {
    /// Whether `address` lies in it. An IPv4 address that is mapped into IPv6 counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.base, address.to_canonical()) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                base.to_bits() & mask == address.to_bits() & mask
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
                base.to_bits() & mask == address.to_bits() & mask
            }
            _ => false,
        }
    }
}

impl Network {
    /// Whether every address of `other` lies in it.
    pub fn covers(&self, other: &Self) -> bool {
        self.base.is_ipv4() == other.base.is_ipv4() && self.bits <= other.bits && self.contains(other.base)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.bits)
    }
}

/// The text is not a network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a network: write an address, or an address and a prefix length such as 10.0.0.0/8")]
pub struct NotANetwork(String);

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let wrong = || NotANetwork(text.to_owned());
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let base = IpAddr::from_str(address.trim()).map_err(|_| wrong())?;
        let most = if base.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), |bits| bits.trim().parse().map_err(|_| wrong()))?;
        if bits > most {
            return Err(wrong());
        }
        Ok(Self { base, bits })
    }
}

/// Whether an address is one of the public internet: what the guard lets through without a grant.
///
/// Loopback, private, shared, link-local (the metadata services of clouds), multicast, documentation, benchmark and
/// reserved addresses are not, and neither are the ways to write an IPv4 address inside an IPv6 one.
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(a == 0
        || a == 10
        || a == 127
        || a >= 224
        || (a == 100 && (64..128).contains(&b))
        || (a == 169 && b == 254)
        || (a == 172 && (16..32).contains(&b))
        || (a == 192 && b == 0 && (c == 0 || c == 2))
        || (a == 192 && b == 88 && c == 99)
        || (a == 192 && b == 168)
        || (a == 198 && (b == 18 || b == 19))
        || (a == 198 && b == 51 && c == 100)
        || (a == 203 && b == 0 && c == 113))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    // Only 2000::/3 is given out at all; the rest of the space is local, special or not assigned.
    if segments[0] & 0xe000 != 0x2000 {
        return false;
    }
    match segments[..2] {
        // Protocol assignments (Teredo among them), 6to4 and documentation.
        [0x2001, second] if second < 0x0200 || second == 0x0db8 => false,
        [0x2002, _] => false,
        [0x3fff, second] if second < 0x1000 => false,
        _ => true,
    }
}

/// A rule of hosts that may be called: `api.example.com`, `*.example.com` (any depth below), `*` (every host), each
/// with an optional `:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRule {
    host: HostName,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum HostName {
    Every,
    Below(String),
    Exact(String),
}

/// The text is not a host rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a host: write api.example.com, *.example.com, an address or *, with :port if it matters"
)]
pub struct NotAHost(String);

impl FromStr for HostRule {
    type Err = NotAHost;

    fn from_str(text: &str) -> Result<Self, NotAHost> {
        let wrong = || NotAHost(text.to_owned());
        let text = text.trim();
        let (host, port) = split_port(text).ok_or_else(wrong)?;
        let host = host.to_ascii_lowercase();
        let host = if host == "*" {
            HostName::Every
        } else if let Some(parent) = host.strip_prefix("*.") {
            HostName::Below(checked_host(parent).ok_or_else(wrong)?)
        } else {
            HostName::Exact(checked_host(&host).ok_or_else(wrong)?)
        };
        Ok(Self { host, port })
    }
}

fn checked_host(host: &str) -> Option<String> {
    let is_address = host.parse::<IpAddr>().is_ok();
    let is_name = !host.is_empty()
        && host.len() <= 253
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        && !host.starts_with('.');
    (is_address || is_name).then(|| host.trim_end_matches('.').to_owned())
}

/// Splits `host:port`, `[v6]:port`, `host` or a bare IPv6 address.
pub(crate) fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        return match rest.strip_prefix(':') {
            Some(port) => Some((host, Some(port.parse().ok()?))),
            None => rest.is_empty().then_some((host, None)),
        };
    }
    match text.rsplit_once(':') {
        Some((host, _)) if host.contains(':') => Some((text, None)),
        Some((host, port)) => Some((host, Some(port.parse().ok()?))),
        None => Some((text, None)),
    }
}

impl HostRule {
    /// Whether the rule lets `host` (without brackets) and `port` through.
    pub fn allows(&self, host: &str, port: u16) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        self.port.is_none_or(|own| own == port)
            && match &self.host {
                HostName::Every => true,
                HostName::Exact(own) => *own == host,
                HostName::Below(parent) => host
                    .strip_suffix(parent.as_str())
                    .is_some_and(|below| below.len() > 1 && below.ends_with('.')),
            }
    }

    /// Whether everything that `other` lets through passes this rule too.
    pub fn covers(&self, other: &Self) -> bool {
        let port = self.port.is_none() || self.port == other.port;
        let host = match (&self.host, &other.host) {
            (HostName::Every, _) => true,
            (_, HostName::Every) => false,
            (HostName::Exact(own), HostName::Exact(other)) => own == other,
            (HostName::Exact(_), HostName::Below(_)) => false,
            (HostName::Below(parent), HostName::Exact(name) | HostName::Below(name)) => {
                (name == parent && matches!(other.host, HostName::Below(_)))
                    || name.strip_suffix(parent.as_str()).is_some_and(|below| below.ends_with('.'))
            }
        };
        port && host
    }
}

impl fmt::Display for HostRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            HostName::Every => f.write_str("*")?,
            HostName::Below(parent) => write!(f, "*.{parent}")?,
            HostName::Exact(host) if host.contains(':') => write!(f, "[{host}]")?,
            HostName::Exact(host) => f.write_str(host)?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_public_internet_are_public() {
        for public in ["1.1.1.1", "93.184.216.34", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8"] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for other in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.0.9",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::7f00:1",
            "64:ff9b::7f00:1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "ff02::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
        ] {
            assert!(!is_public(other.parse().unwrap()), "{other}");
        }
    }

    #[test]
    fn a_network_holds_the_addresses_below_its_prefix() {
        let network: Network = "10.1.0.0/16".parse().unwrap();
        assert!(network.contains("10.1.255.1".parse().unwrap()));
        assert!(network.contains("::ffff:10.1.0.1".parse().unwrap()));
        assert!(!network.contains("10.2.0.1".parse().unwrap()));
        assert!("0.0.0.0/0".parse::<Network>().unwrap().contains("9.9.9.9".parse().unwrap()));
        assert!("::/0".parse::<Network>().unwrap().contains("fe80::1".parse().unwrap()));
        assert!("127.0.0.1".parse::<Network>().unwrap().contains("127.0.0.1".parse().unwrap()));
        for wrong in ["", "10.0.0.0/33", "::/129", "example.com", "10.0.0.0/-1", "10.0.0.0/"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn host_rules_match_names_below_and_ports() {
        let cases = [
            ("api.example.com", "api.example.com", 443, true),
            ("api.example.com", "API.example.com.", 80, true),
            ("api.example.com", "example.com", 443, false),
            ("api.example.com:8443", "api.example.com", 443, false),
            ("*.example.com", "a.b.example.com", 1, true),
            ("*.example.com", "example.com", 1, false),
            ("*.example.com", "evilexample.com", 1, false),
            ("*", "anything.test", 9, true),
            ("[::1]:80", "::1", 80, true),
            ("127.0.0.1:8080", "127.0.0.1", 8080, true),
        ];
        for (rule, host, port, expected) in cases {
            assert_eq!(
                rule.parse::<HostRule>().unwrap().allows(host, port),
                expected,
                "{rule} {host}:{port}"
            );
        }
        for wrong in ["", "http://example.com", "a b", "example.com:99999", "*.", "example.com/path", "[::1"]
        {
            assert!(wrong.parse::<HostRule>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_rule_covers_narrower_ones_only() {
        let cases = [
            ("*", "*.example.com", true),
            ("*", "*:80", true),
            ("*:443", "*", false),
            ("*.example.com", "api.example.com:1", true),
            ("*.example.com", "*.a.example.com", true),
            ("*.example.com", "*.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "*.badexample.com", false),
            ("api.example.com", "*", false),
            ("api.example.com", "*.example.com", false),
        ];
        for (wide, narrow, expected) in cases {
            let (wide, narrow): (HostRule, HostRule) = (wide.parse().unwrap(), narrow.parse().unwrap());
            assert_eq!(wide.covers(&narrow), expected, "{wide} covers {narrow}");
        }
    }
}
