//! Certificates of authorities that guests' calls trust besides the public ones.

use tokio_rustls::rustls::{self, RootCertStore};

/// Takes a certificate in DER form for one of an authority.
pub(crate) fn add_root(roots: &mut RootCertStore, der: &[u8]) -> Result<(), rustls::Error> {
    roots.add(der.to_vec().into())
}
