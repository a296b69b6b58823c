//! Small projects in Ruby and PHP, started by what they have and nothing else. CI installs both; elsewhere their absence
//! is said.
#![cfg(target_os = "linux")]

mod support;

use std::path::Path;

use support::{fetch, runtime, spec, start};

/// In CI, which installs it, a missing interpreter is an error.
fn has(interpreter: &str) -> bool {
    !support::missing(interpreter)
}

fn project(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

async fn said(files: &[(&str, &str)], path: &'static str) -> String {
    let dir = project(files);
    let (_store, runtime) = runtime();
    let runtime = std::sync::Arc::new(runtime);
    let started = start(&runtime, spec(dir.path())).await.unwrap();
    fetch(&started.instance, path).await.unwrap()
}

const RUBY: &str = r##"require 'socket'
require_relative 'lib/greeting'
server = TCPServer.new('127.0.0.1', Integer(ENV.fetch('PORT')))
loop do
  client = server.accept
  path = client.gets.to_s.split[1]
  nil until client.gets.to_s.strip.empty?
  body = "#{GREETING} #{path} from #{ENV['K_SERVICE']} in #{File.basename($PROGRAM_NAME)}"
  client.write("HTTP/1.1 200 OK\r\nContent-Length: #{body.bytesize}\r\nConnection: close\r\n\r\n#{body}")
  client.close
end
"##;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ruby_script_is_started_by_its_name() {
    if !has("ruby") {
        return;
    }
    for name in ["app.rb", "main.rb", "server.rb"] {
        let files = [(name, RUBY), ("lib/greeting.rb", "GREETING = 'good day'\n")];
        assert_eq!(said(&files, "/x").await, format!("good day /x from hello in {name}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_php_project_is_served_from_the_directory_with_its_index() {
    if !has("php") {
        return;
    }
    let index = "<?php require __DIR__ . '/../src/greeting.php'; echo greeting(), ' ', $_SERVER['REQUEST_URI'], ' from ', \
                 getenv('K_SERVICE');";
    let greeting = ("src/greeting.php", "<?php function greeting() { return 'good day'; }");
    for root in ["public", "web", "htdocs"] {
        let name = format!("{root}/index.php");
        let page = format!("{root}/plain.txt");
        let files = [(name.as_str(), index), (page.as_str(), "a file"), greeting, ("composer.json", "{}")];
        assert_eq!(said(&files, "/any/path?q=1").await, "good day /any/path?q=1 from hello", "{root}");
        assert_eq!(said(&files, "/plain.txt").await, "a file", "{root}");
    }
    let files = [("index.php", "<?php echo 'at the root ', $_GET['n'] + 1;")];
    assert_eq!(said(&files, "/?n=41").await, "at the root 42");
}
