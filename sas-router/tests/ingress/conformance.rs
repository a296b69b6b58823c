//! The route table passes the suite for routers.

use std::sync::Arc;

use sas_router::RouteTable;
use sas_testkit::router::{self, Subject};

#[tokio::test]
async fn the_route_table_passes_the_router_suite() {
    let report = router::suite(async || ((), Subject::new(|| Arc::new(RouteTable::new(7))))).await;
    println!("{report}");
    report.assert_passed_skipping(&[]);
}
