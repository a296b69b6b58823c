//! Deploying: a manifest, written or dropped.

use maud::html;

use crate::{
    api::Who,
    page::{Page, form_token},
};

/// A manifest to begin with.
const EXAMPLE: &str = "apiVersion: serving.knative.dev/v1
kind: Service
metadata:
  name: hello
  annotations:
    sas.dev/package: /path/of/a/package
spec:
  template:
    spec:
      containerConcurrency: 10
      containers:
        - image: \"\"
";

pub(super) fn show(who: &Who, mark: &str) -> Page {
    let mut page = Page::new("Deploy");
    page.live = false;
    if !who.may_deploy() {
        return page.with("deploy", crate::page::nothing("This token may not deploy."));
    }
    page.with("deploy", html! {
        form.deploy method="post" action="/console/do/deploy" {
            (form_token(mark))
            input type="hidden" name="back" value="/console/deploy";
            label for="manifest" { "Manifest, in YAML or JSON; several are separated by a line of three dashes" }
            textarea #manifest name="manifest" rows="22" spellcheck="false" required data-drop="true" placeholder=(EXAMPLE) {}
            p.muted { "Drop a manifest's file here, or a package: a " code { ".jar" } ", " code { ".zip" } ", " code { ".tar.gz" } " or " code { ".wasm" } " is sent, and a manifest that names it by its digest is written here." }
            p #drop-said role="status" {}
            label { "It is " select name="expects" {
                option value="" { "new, or a change" }
                option value="new" { "new: refuse it where it is there" }
                option value="change" { "a change: refuse it where it is not there" }
            } }
            button type="submit" { "Check and deploy" }
        }
        p.muted { "All documents are checked before anything is done, and mistakes are told with their fields. A new revision takes traffic only after it was prepared." }
    })
}
