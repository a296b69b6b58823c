//! Layouts of projects, and how each starts: on a host whose programs are files that the test makes.

use std::{fs, io::Write as _, os::unix::fs::PermissionsExt as _, path::Path};

use sas_core::{RevisionSpec, Source};

use super::{Launch, launch_in};
use crate::{config::ProcessConfig, package::store::Kind};

const ALL: [&str; 12] =
    ["sh", "bash", "env", "node", "python3", "java", "php", "ruby", "bundle", "rackup", "puma", "htop"];

fn write(path: &Path, content: &[u8], mode: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn jar(manifest: &str) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    writer.start_file("META-INF/MANIFEST.MF", zip::write::SimpleFileOptions::default()).unwrap();
    writer.write_all(manifest.as_bytes()).unwrap();
    writer.finish().unwrap().into_inner()
}

/// Starts the layout `files`: names with their contents, `+` before a name for an executable, `jar:` before a content
/// for a jar with that manifest.
fn launch(
    files: &[(&str, &str)],
    host: &[&str],
    change: impl Fn(&mut RevisionSpec),
) -> Result<(Launch, String), String> {
    let dir = tempfile::tempdir().unwrap();
    let (root, bin) = (dir.path().join("app"), dir.path().join("bin"));
    fs::create_dir_all(&root).unwrap();
    for name in host {
        write(&bin.join(name), b"#!/bin/sh\n", 0o755);
    }
    for (name, content) in files {
        let (name, mode) = name.strip_prefix('+').map_or((*name, 0o644), |name| (name, 0o755));
        match content.strip_prefix("jar:") {
            Some(manifest) => write(&root.join(name), &jar(manifest), mode),
            None => write(&root.join(name), content.as_bytes(), mode),
        }
    }
    // A second entry, so that no single directory is taken for the root.
    write(&root.join("README.md"), b"x", 0o644);
    let mut config = ProcessConfig::in_store(dir.path().join("store"));
    config.path = bin.display().to_string();
    config.java.options = Vec::new();
    let mut spec = RevisionSpec::new("process", Source::Path(root.clone()));
    change(&mut spec);
    let shown = |text: &str| {
        let text = text.replace(&format!("{}/", bin.display()), "");
        text.replace(&format!("{}/", root.display()), "@").replace(&root.display().to_string(), "@")
    };
    let mut launch = launch_in(&root, Kind::Tree, &spec, &config).map_err(|error| shown(&error.message))?;
    let mut words = vec![shown(&launch.program.display().to_string())];
    if let Some(jar) = &launch.jar {
        words.extend(["-jar".to_owned(), shown(&jar.display().to_string())]);
    }
    words.extend(launch.args.iter().map(|arg| shown(arg)));
    for (_, value) in &mut launch.env {
        *value = shown(value);
    }
    for note in &mut launch.notes {
        *note = shown(note);
    }
    Ok((launch, words.join(" ")))
}

const FASTAPI: &str = "from fastapi import FastAPI\napp = FastAPI()\n";
const FLASK: &str =
    "from flask import Flask\napp = Flask(__name__)\nif __name__ == '__main__':\n    app.run(port=5000)\n";
const BOOT: &str =
    "jar:Main-Class: org.springframework.boot.loader.launch.JarLauncher\nSpring-Boot-Version: 3.3.0\n";
const MANAGE: &str = "import os\nos.environ.setdefault('DJANGO_SETTINGS_MODULE', 'shop.settings')\nfrom django.core.management import x\n";
const DIST: &str = "Name: x\n";

#[test]
fn each_layout_starts_as_its_ecosystem_starts_it() {
    type Layout<'a> = (&'a [(&'a str, &'a str)], &'a str);
    let table: &[Layout<'_>] = &[
        // A Procfile goes before all else.
        (&[("Procfile", "web: node web.js $PORT\nworker: x\n"), ("main.py", "")], "node web.js $(PORT)"),
        (&[("Procfile", "\u{feff}release: y\r\nweb: node web.js\r\n")], "node web.js"),
        (&[("Procfile", "web: cd src && node x.js $PORT")], "bash -c cd src && node x.js $$PORT"),
        (
            &[("Procfile", "web: java $JAVA_OPTS -jar target/*.jar")],
            "bash -c java $$JAVA_OPTS -jar target/*.jar",
        ),
        (
            &[("Procfile", "web: java -jar a.jar -p $PORT"), ("a.jar", "jar:Main-Class: A\n")],
            "java -jar @a.jar -p $(PORT)",
        ),
        (&[("Procfile", "web: java -Xmx64m -jar a.jar"), ("a.jar", "jar:")], "java -Xmx64m -jar a.jar"),
        (&[("Procfile", "web: ./start.sh"), ("start.sh", "#!/bin/sh\n")], "/bin/sh @start.sh"),
        (&[("Procfile", "web: ./start.sh"), ("+start.sh", "#!/bin/sh\n")], "@start.sh"),
        (&[("Procfile", "web: ./start.sh"), ("start.sh", "set -e\n")], "sh @start.sh"),
        (&[("Procfile", "web: python app.py"), ("app.py", "")], "python3 app.py"),
        (&[("Procfile", "worker: x"), ("main.py", "")], "python3 -u @main.py"),
        // Node, as npm start.
        (
            &[
                ("package.json", r#"{"scripts":{"start":"node -r dotenv/config src/i.js"}}"#),
                ("src/i.js", ""),
            ],
            "node -r dotenv/config src/i.js",
        ),
        (
            &[("package.json", r#"{"main":"dist/s.js","scripts":{"start":"node ."}}"#), ("dist/s.js", "")],
            "node .",
        ),
        (
            &[("package.json", r#"{"scripts":{"start":"node --import a/b.js i.js"}}"#), ("i.js", "")],
            "node --import a/b.js i.js",
        ),
        (
            &[
                ("package.json", r#"{"scripts":{"start":"next start"}}"#),
                ("+node_modules/.bin/next", "#!/bin/sh\n"),
            ],
            "@node_modules/.bin/next start",
        ),
        (&[("package.json", r#"{"scripts":{"start":"A=1 node i.js"}}"#), ("i.js", "")], "node i.js"),
        (&[("package.json", r#"{"scripts":{"start":"node i.js | htop"}}"#)], "sh -c node i.js | htop"),
        (
            &[("package.json", r#"{"scripts":{"prestart":"node b.js","start":"node i.js"}}"#), ("i.js", "")],
            "sh -c npm_lifecycle_event=prestart npm_lifecycle_script='node b.js' sh -c 'node b.js' && exec sh -c 'node i.js'",
        ),
        (
            &[("package.json", r#"{"main":"dist/x.js","scripts":{"prestart":"build","start":"node ."}}"#)],
            "sh -c npm_lifecycle_event=prestart npm_lifecycle_script='build' sh -c 'build' && exec sh -c 'node .'",
        ),
        (&[("package.json", r#"{"main":"lib/x"}"#), ("lib/x.js", ""), ("server.js", "")], "node @server.js"),
        (&[("package.json", r#"{"main":"lib"}"#), ("lib/index.js", "")], "node @lib/index.js"),
        (&[("package.json", "\u{feff}{}"), ("index.js", "")], "node @index.js"),
        (&[("package.json", r#"{"devDependencies":{}}"#), ("main.py", "")], "python3 -u @main.py"),
        (&[("server.js", "")], "node @server.js"),
        // Python.
        (&[("app.py", "print(1)")], "python3 -u @app.py"),
        (
            &[
                ("main.py", FASTAPI),
                ("requirements.txt", "fastapi\n"),
                ("uvicorn/__init__.py", ""),
                ("uvicorn-1.dist-info/METADATA", DIST),
            ],
            "python3 -m uvicorn main:app --host 127.0.0.1 --port $(PORT)",
        ),
        (
            &[
                ("app/main.py", FASTAPI),
                ("libs/hypercorn/__init__.py", ""),
                ("libs/hypercorn-1.dist-info/METADATA", DIST),
            ],
            "python3 -m hypercorn app.main:app --bind 127.0.0.1:$(PORT)",
        ),
        (
            &[
                ("src/main.py", FASTAPI),
                ("libs/uvicorn/__init__.py", ""),
                ("libs/x.dist-info/METADATA", DIST),
            ],
            "python3 -m uvicorn main:app --host 127.0.0.1 --port $(PORT)",
        ),
        (
            &[("app.py", FLASK), ("gunicorn/__init__.py", ""), ("gunicorn-1.dist-info/METADATA", DIST)],
            "python3 -m gunicorn app:app --bind 127.0.0.1:$(PORT)",
        ),
        (
            &[("app.py", FLASK), ("flask/__init__.py", ""), ("flask-1.dist-info/METADATA", DIST)],
            "python3 -m flask --app app:app run --no-reload --host 127.0.0.1 --port $(PORT)",
        ),
        (
            &[
                ("app.py", "app = FastAPI()\nif __name__ == '__main__':\n  run(os.environ['PORT'])"),
                ("uvicorn/__init__.py", ""),
                ("u.dist-info/METADATA", DIST),
            ],
            "python3 -u @app.py",
        ),
        (
            &[
                ("wsgi.py", "def application(environ, start):\n"),
                ("waitress/__init__.py", ""),
                ("w.dist-info/METADATA", DIST),
            ],
            "python3 -m waitress --listen=127.0.0.1:$(PORT) wsgi:application",
        ),
        (
            &[
                ("manage.py", MANAGE),
                ("shop/wsgi.py", ""),
                ("gunicorn/__init__.py", ""),
                ("g.dist-info/METADATA", DIST),
                ("package.json", "{}"),
            ],
            "python3 -m gunicorn shop.wsgi:application --bind 127.0.0.1:$(PORT)",
        ),
        (
            &[("manage.py", MANAGE), ("shop/wsgi.py", "")],
            "python3 -u @manage.py runserver --noreload 127.0.0.1:$(PORT)",
        ),
        (
            &[(".venv/pyvenv.cfg", "home = /x"), ("+.venv/bin/python", "x"), ("main.py", "")],
            "@.venv/bin/python -u @main.py",
        ),
        (
            &[("pyproject.toml", "[project.scripts]\nserve = \"shop.cli:main\"\n")],
            "python3 -u -c import sys; from shop.cli import main; sys.exit(main())",
        ),
        // Java.
        (
            &[("a.jar", "jar:Main-Class: A\n"), ("b.jar", "jar:x: y\n"), ("package.json", "{}")],
            "java -jar @a.jar",
        ),
        (
            &[("META-INF/MANIFEST.MF", "Main-Class: org.springframework.boot.loader.launch.JarLauncher\n")],
            "java -cp @ org.springframework.boot.loader.launch.JarLauncher",
        ),
        (
            &[("pom.xml", ""), ("target/a-1.jar", BOOT), ("target/a-1.jar.original", "")],
            "java -jar @target/a-1.jar",
        ),
        (&[("build/libs/a.jar", BOOT), ("build/libs/a-plain.jar", "jar:")], "java -jar @build/libs/a.jar"),
        (&[("+bin/shop", "#!/bin/sh\n"), ("bin/shop.bat", "x"), ("lib/shop.jar", "jar:")], "@bin/shop"),
        // Ruby and PHP.
        (&[("config.ru", "")], "rackup -o 127.0.0.1 -p $(PORT)"),
        (&[("config.ru", ""), ("Gemfile", "gem 'puma'\n")], "bundle exec puma -b tcp://127.0.0.1:$(PORT)"),
        (
            &[
                ("config/application.rb", ""),
                ("+bin/rails", ""),
                ("config.ru", ""),
                ("Gemfile", "gem \"rails\""),
            ],
            "bundle exec rails server -b 127.0.0.1 -p $(PORT)",
        ),
        (&[("app.rb", "")], "ruby app.rb"),
        (&[("index.php", "")], "php -S 127.0.0.1:$(PORT) -t @"),
        (&[("composer.json", "{}"), ("public/index.php", "")], "php -S 127.0.0.1:$(PORT) -t @public"),
        // Programs and scripts.
        (&[("+serve", "\x7fELF"), ("data.txt", "")], "@serve"),
        (&[("+server", "\x7fELF"), ("+tool", "\x7fELF")], "@server"),
        (&[("+target/release/shop", "\x7fELF"), ("Cargo.toml", "")], "@target/release/shop"),
        (&[("+bin/shop", "\x7fELF")], "@bin/shop"),
        (&[("run.sh", "#!/bin/sh\n"), ("setup.sh", "")], "/bin/sh @run.sh"),
        (&[("only.sh", "exec x\n")], "sh @only.sh"),
    ];
    let mut wrong = Vec::new();
    for (files, expected) in table {
        let found =
            launch(files, &ALL, |_| ()).map_or_else(|error| format!("refused: {error}"), |(_, found)| found);
        if found != *expected {
            wrong.push(format!("{files:?}: {found:?} instead of {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_certainly_cannot_start_is_refused_and_names_what_is_missing() {
    type Refused<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], &'a [&'a str]);
    let table: &[Refused<'_>] = &[
        (&[("Procfile", "web: gunicorn app:app")], &ALL, &["Procfile: web", "\"gunicorn\"", "install"]),
        (&[("Procfile", "web: ./run")], &ALL, &["Procfile: web", "\"./run\"", "not in the package"]),
        (&[("Procfile", "web:")], &ALL, &["web has no command"]),
        (
            &[("package.json", r#"{"scripts":{"start":"node -r a/b gone.js"}}"#)],
            &ALL,
            &["\"gone.js\"", "not in the package"],
        ),
        (
            &[("package.json", r#"{"scripts":{"start":"next start"}}"#)],
            &ALL,
            &["\"next\"", "node_modules/.bin"],
        ),
        (&[("package.json", "{}"), ("index.js", "")], &["sh"], &["package.json needs node"]),
        (&[("package.json", "{")], &ALL, &["not valid JSON"]),
        (&[("package.json", r#"{"main":"gone.js"}"#)], &ALL, &["scripts.start", "\"gone.js\""]),
        (&[("main.py", "")], &["sh"], &["python3"]),
        (&[("a.jar", "jar:Main-Class: A\n")], &["sh"], &["java"]),
        (
            &[("a.jar", "jar:Main-Class: A\n"), ("b.jar", "jar:Main-Class: B\n")],
            &ALL,
            &["several jars", "a.jar, b.jar"],
        ),
        (&[("+bin/x", "#!/bin/sh\n"), ("lib/x.jar", "jar:")], &["sh"], &["java"]),
        (&[("index.php", "")], &["sh"], &["php"]),
        (&[("config.ru", "")], &["sh"], &["ruby"]),
        (&[("config.ru", ""), ("Gemfile", "")], &["ruby"], &["bundle"]),
        (&[("+a", "\x7fELF"), ("+b", "\x7fELF")], &ALL, &["several programs", "a, b"]),
        (&[("a.sh", ""), ("b.sh", "")], &ALL, &["several scripts"]),
        (&[("+a", "\u{feff}#!/bin/sh\n"), ("+run", "\u{feff}#!/bin/sh\n")], &ALL, &["no way to start"]),
        (&[("go.mod", "module x"), ("main.go", "")], &ALL, &["go build"]),
        (&[("Cargo.toml", "")], &ALL, &["cargo build"]),
        (&[("requirements.txt", "flask")], &ALL, &["says how it starts"]),
        (&[("notes.txt", "")], &ALL, &["no way to start", "Procfile", "set the command"]),
    ];
    for (files, host, mentions) in table {
        let error = match launch(files, host, |_| ()) {
            Ok((_, found)) => panic!("{files:?}: started as {found}"),
            Err(error) => error,
        };
        for mention in *mentions {
            assert!(error.contains(mention), "{files:?}: {mention:?} is not in: {error}");
        }
    }
}

#[test]
fn projects_find_what_they_bring_and_what_their_kind_expects() {
    let value = |launch: &Launch, name: &str| {
        launch.env.iter().rev().find(|(found, _)| found == name).map(|(_, value)| value.clone())
    };
    let package = r#"{"name":"shop","version":"1.2.3","config":{"port":8},"engines":{"node":">=20"},
        "scripts":{"start":"A=1 node i.js"}}"#;
    let (node, _) =
        launch(&[("package.json", package), ("i.js", ""), ("node_modules/.bin/x", "")], &ALL, |_| ())
            .unwrap();
    for (name, expected) in [
        ("npm_package_name", "shop"),
        ("npm_package_version", "1.2.3"),
        ("npm_package_config_port", "8"),
        ("npm_package_engines_node", ">=20"),
        ("npm_lifecycle_event", "start"),
        ("npm_package_json", "@package.json"),
        ("NODE", "node"),
        ("A", "1"),
    ] {
        assert_eq!(value(&node, name).as_deref(), Some(expected), "{name}");
    }
    assert!(node.path_prefix[0].ends_with("app/node_modules/.bin"), "{:?}", node.path_prefix);

    let files = [
        (".venv/pyvenv.cfg", ""),
        (".venv/lib/python3.9/site-packages/x.py", ""),
        ("+.venv/bin/gunicorn", "#!/gone/.venv/bin/python\n"),
        ("Procfile", "web: gunicorn app:app"),
        ("libs/y.dist-info/METADATA", ""),
    ];
    let (python, found) = launch(&files, &ALL, |_| ()).unwrap();
    assert_eq!(found, "python3 @.venv/bin/gunicorn app:app", "its own interpreter is not here");
    assert_eq!(value(&python, "VIRTUAL_ENV").as_deref(), Some("@.venv"));
    let path = value(&python, "PYTHONPATH").unwrap();
    assert_eq!(path, "@libs:@.venv/lib/python3.9/site-packages:@");
    assert!(python.path_prefix[0].ends_with(".venv/bin"));

    for (manifest, variable) in
        [(BOOT, "SERVER_PORT"), ("jar:Main-Class: io.quarkus.bootstrap.runner.X\n", "QUARKUS_HTTP_PORT")]
    {
        let (java, _) = launch(&[("a.jar", manifest)], &ALL, |_| ()).unwrap();
        assert_eq!(value(&java, variable).as_deref(), Some("$(PORT)"));
    }
}

#[test]
fn what_is_passed_over_or_only_tried_is_noted() {
    for (files, mention) in [
        (&[("package.json", "{}"), ("main.py", "")][..], "package.json: it has no scripts.start"),
        (&[("Procfile", "worker: x"), ("main.py", "")], "no process web, only worker"),
        (&[("a.jar", "no zip"), ("main.py", "")], "a.jar"),
        (&[("run.sh", "#!/bin/sh\n")], "no executable bit"),
        (&[("main.py", FASTAPI)], "tried as a script"),
        (&[("main.py", FASTAPI), ("requirements.txt", "uvicorn==1")], "pip install --target"),
        (&[("manage.py", MANAGE)], "development server"),
        (&[("+server", "\x7fELF"), ("+tool", "\x7fELF")], "tool was not started"),
    ] {
        let (launch, _) = launch(files, &ALL, |_| ()).unwrap();
        assert!(launch.notes.iter().any(|note| note.contains(mention)), "{files:?}: {:?}", launch.notes);
    }
}

#[test]
fn a_command_goes_before_what_is_found_and_arguments_are_added() {
    let files = [("main.py", ""), ("run.sh", "#!/bin/sh\n"), ("data", "x"), ("a.jar", "jar:Main-Class: A\n")];
    let with = |command: &[&str], args: &[&str]| {
        launch(&files, &ALL, |spec| {
            spec.command = command.iter().map(|word| (*word).to_owned()).collect();
            spec.args = args.iter().map(|word| (*word).to_owned()).collect();
        })
        .map(|(_, found)| found)
    };
    assert_eq!(with(&["node", "$(X)"], &["y"]).unwrap(), "node $(X) y");
    assert_eq!(with(&["./run.sh"], &[]).unwrap(), "/bin/sh @run.sh");
    assert_eq!(with(&["java", "-jar", "a.jar", "x"], &["y"]).unwrap(), "java -jar @a.jar x y");
    assert!(with(&["./data"], &[]).unwrap_err().contains("not executable"));
    let script = [("package.json", r#"{"scripts":{"start":"node i.js | htop"}}"#)];
    let (_, found) = launch(&script, &ALL, |spec| spec.args = vec!["--x".into()]).unwrap();
    assert_eq!(found, "sh -c node i.js | htop \"$$@\" sh --x", "as npm start -- --x");
}
