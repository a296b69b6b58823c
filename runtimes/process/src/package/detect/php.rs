//! PHP, by its own server.

use sas_core::Result;

use super::{Project, Start, host::interpreter};

pub(super) fn detect(project: &mut Project<'_>) -> Result<Option<Start>> {
    const ROOTS: [&str; 4] = ["public", "web", "htdocs", ""];
    let php = |project: &Project<'_>| interpreter(project.config, &["php"], "a PHP project");
    let Some(root) = ROOTS.into_iter().find(|dir| project.root.join(dir).join("index.php").is_file()) else {
        if project.has("composer.json") {
            project.note("composer.json: the project has no index.php, public/index.php or web/index.php");
        }
        return Ok(None);
    };
    let documents = project.root.join(root).display().to_string();
    let mut args = vec!["-S".to_owned(), "127.0.0.1:$(PORT)".into(), "-t".into(), documents];
    // Laravel's own server runs PHP's with this script, which serves files and leaves the rest to the application.
    let router = "vendor/laravel/framework/src/Illuminate/Foundation/resources/server.php";
    if project.has("artisan") && project.has(router) {
        args.push(project.root.join(router).display().to_string());
    }
    Ok(Some(Start::program(php(project)?, args)))
}
