//! Every scaler of the crate passes the suite for scalers.

use sas_testkit::scaler;

#[tokio::test]
async fn the_default_scalers_pass_the_scaler_suite() {
    for scaler in sas_autoscale::default_scalers() {
        let report = scaler::suite(async || ((), scaler.clone())).await;
        println!("{}: {report}", scaler.name());
        report.assert_passed_skipping(&[]);
    }
}
