//! An image as a service: built, pushed to a registry on loopback, deployed by its tag, scaled, updated, rolled back and
//! removed. Needs root, `crun` or `runc`, a static `busybox` (Debian: `busybox-static`) and, to show pulls from a registry,
//! `docker-registry`; without the last it reads the image from the layout that it has written.
//!
//! `cargo run --example image --features container`

#![allow(clippy::print_stdout, reason = "this program talks to a terminal")]

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use sas::{
    container::{ImageSettings, PullObserver, PullProgress, write_image},
    knative::manifest::TrafficTarget,
    prelude::*,
};
use tokio::time::Instant;

/// Prints what is pulled.
#[derive(Debug)]
struct Print;

impl PullObserver for Print {
    fn progress(&self, _: &str, progress: &PullProgress) {
        if !matches!(progress, PullProgress::Pulling { .. }) {
            println!("  {progress}");
        }
    }
}

/// Ends the registry with the example.
struct Registry(Child);

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn busybox() -> Option<PathBuf> {
    ["/bin/busybox", "/usr/bin/busybox"].into_iter().map(PathBuf::from).find(|path| path.is_file())
}

/// An image of busybox's web server with one page.
fn build(dir: &Path, layout: &Path, tag: &str, page: &str) -> Result<(), Box<dyn Error>> {
    let root = dir.join(tag);
    fs::create_dir_all(root.join("bin"))?;
    fs::create_dir_all(root.join("www"))?;
    fs::copy(busybox().ok_or("busybox-static is not installed")?, root.join("bin/busybox"))?;
    fs::write(root.join("www/index.html"), format!("{page}\n"))?;
    let mut settings = ImageSettings::new(["/bin/busybox", "httpd", "-f", "-h", "/www", "-p", "8080"]);
    settings.prefix = Some("/".into());
    settings.user = "65534:65534".into();
    let digest = write_image(&root, layout, tag, &settings)?;
    println!("built {tag}: {digest}");
    Ok(())
}

async fn registry(dir: &Path) -> Result<Option<(Registry, String)>, Box<dyn Error>> {
    let both = ["/usr/bin/docker-registry", "/usr/bin/skopeo"]
        .into_iter()
        .all(|program| Path::new(program).is_file());
    if !both {
        return Ok(None);
    }
    let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let data = dir.join("registry");
    let config = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{address}\"}}\n",
        data.display()
    );
    fs::write(dir.join("registry.yml"), config)?;
    let child = Command::new("/usr/bin/docker-registry")
        .arg("serve")
        .arg(dir.join("registry.yml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let registry = Registry(child);
    for _ in 0..200 {
        if std::net::TcpStream::connect(address).is_ok() {
            return Ok(Some((registry, address.to_string())));
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    Err("the registry did not come up".into())
}

/// Moves the tag `live` to the image `tag`, and says by which name it is deployed.
fn publish(layout: &Path, tag: &str, registry: Option<&str>) -> Result<String, Box<dyn Error>> {
    let Some(registry) = registry else { return Ok(format!("oci:{}:{tag}", layout.display())) };
    let name = format!("{registry}/team/page:live");
    let status = Command::new("/usr/bin/skopeo")
        .args(["copy", "--quiet", "--dest-tls-verify=false"])
        .arg(format!("oci:{}:{tag}", layout.display()))
        .arg(format!("docker://{name}"))
        .status()?;
    if !status.success() {
        return Err(format!("skopeo copy ended with {status}").into());
    }
    Ok(name)
}

fn manifest(image: &str) -> String {
    format!(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {{name: page}}\nspec:\n  template:\n    metadata:\n      \
         annotations: {{autoscaling.knative.dev/max-scale: '5', sas.dev/stop-grace: 1s}}\n    spec:\n      containerConcurrency: 1\n      containers:\n      \
         - image: {image}\n        securityContext: {{runAsNonRoot: true, readOnlyRootFilesystem: true}}\n        resources: \
         {{limits: {{cpu: 500m, memory: 64Mi}}}}\n"
    )
}

async fn get(platform: &Platform) -> Result<String, Box<dyn Error>> {
    let request = http::Request::get("/").body(Body::empty())?;
    let response = platform.call("default", "page", request).await.map_err(|error| error.error)?;
    let body = response.into_body().collect(1 << 20).await.map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&body).trim().to_owned())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let dir_path = fs::canonicalize(dir.path())?;
    let layout = dir_path.join("layout");
    build(&dir_path, &layout, "v1", "the first page")?;
    build(&dir_path, &layout, "v2", "the second page")?;
    let registry = registry(&dir_path).await?;
    let at = registry.as_ref().map(|(_, at)| at.as_str());
    println!("registry: {}", at.unwrap_or("none installed; images are read from the layout"));

    let mut config = ContainerConfig::in_store(dir_path.join("store"));
    config.registries.plain_http.extend(at.map(str::to_owned));
    config.local_images.push(layout.clone());
    config.progress = Some(Arc::new(Print));
    let runtime = ContainerRuntime::new(config)?;
    println!("images are run by {}", runtime.program());
    let platform = Platform::builder().runtime(runtime).build().await?;

    let image = publish(&layout, "v1", at)?;
    println!("deploy {image}");
    platform.apply(&manifest(&image), None).await?;
    let began = Instant::now();
    println!("cold: {:?} after {:.0?}", get(&platform).await?, began.elapsed());

    println!("ten at once");
    let began = Instant::now();
    let all = futures_util::future::join_all((0..10).map(|_| get(&platform))).await;
    println!("{} answers after {:.0?}", all.iter().filter(|answer| answer.is_ok()).count(), began.elapsed());

    let image = publish(&layout, "v2", at)?;
    println!("deploy {image}, which is another image now");
    platform.apply(&manifest(&image), None).await?;
    println!("updated: {:?}", get(&platform).await?);

    let record = platform.control().records().into_iter().next().ok_or("there is a service")?;
    let first = record.revisions.first().ok_or("there is a revision")?.name.clone();
    platform.control().set_traffic("default", "page", vec![TrafficTarget::revision(&first, 100)]).await?;
    println!("rolled back to {first}: {:?}", get(&platform).await?);

    platform.control().delete("default", "page").await?;
    match get(&platform).await {
        Ok(page) => return Err(format!("removed, and it still answers {page:?}").into()),
        Err(error) => println!("removed: {error}"),
    }
    let report = platform.shutdown(Duration::from_secs(10)).await;
    println!("drained: {}", report.drained);
    Ok(())
}
