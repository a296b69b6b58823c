//! The console as a handler.

use std::{fmt, net::IpAddr, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header, request::Parts};
use maud::Markup;
use sas_core::{Body, Clock, Handler, Request, Response, Secret, SystemClock};
use tokio_util::sync::CancellationToken;

use crate::{
    action,
    api::{Api, Problem, Result, Who, escaped},
    assets,
    form::Form,
    frame::{self, Frame},
    live::Live,
    pages::{Place, workflow},
    session::{Session, Sessions, set_cookie},
};

/// The path that the console answers at, with all below it.
pub const PREFIX: &str = "/console";

/// Bytes of a form.
const FORM: usize = 2 << 20;
/// Scripts, styles and pictures of this console alone; forms and streams go nowhere else, and nobody frames it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Pages over an admin API: a [`Handler`] that answers at [`PREFIX`] and below, and passes everything else on to the admin
/// API that it stands before.
///
/// It knows the platform by that API alone, which it asks in process with the token that somebody signed in with: whoever
/// looks sees and does what the token may, and each change is in the audit log under the token's name. It holds no other
/// right, and starts and wakes nothing by being looked at.
///
/// Sessions live eight hours, in memory; at most 1,024 at once, and 32 of one token. At most 256 pages are kept live, and 32
/// of one session; those beyond can be read, and say that they are not.
///
/// ```
/// # use std::sync::Arc;
/// use sas_console::Console;
/// use sas_core::{Body, Handler, Request, Response};
///
/// #[derive(Debug)]
/// struct Admin;
/// # #[async_trait::async_trait]
/// impl Handler for Admin {
///     # async fn handle(&self, _: Request) -> Response {
///     // The admin API of a platform.
///     # let mut response = Response::new(Body::from("{}"));
///     # *response.status_mut() = http::StatusCode::UNAUTHORIZED;
///     # response
///     # }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let console = Console::new(Arc::new(Admin));
/// let request = http::Request::get("/console/").header("host", "localhost").body(Body::empty())?;
/// let page = console.handle(request).await.into_body().collect(1 << 20).await.map_err(|error| error.to_string())?;
/// assert!(std::str::from_utf8(&page)?.contains("Sign in"));
/// # Ok(())
/// # }
/// ```
pub struct Console {
    admin: Arc<dyn Handler>,
    sessions: Sessions,
    live: Arc<Live>,
    clock: Arc<dyn Clock>,
    secure: bool,
    peer: fn(&http::Extensions) -> Option<IpAddr>,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").field("secure", &self.secure).finish_non_exhaustive()
    }
}

impl Console {
    /// A console before this admin API.
    pub fn new(admin: Arc<dyn Handler>) -> Self {
        Self {
            admin,
            sessions: Sessions::default(),
            live: Arc::new(Live::new(CancellationToken::new())),
            clock: Arc::new(SystemClock),
            secure: false,
            peer: |_| None,
        }
    }

    /// Its cookies go over TLS alone: for listeners that speak nothing else.
    #[must_use]
    pub fn with_secure_cookies(mut self) -> Self {
        self.secure = true;
        self
    }

    /// Tells by this who asks, so that somebody who guesses tokens keeps nobody else out; without it, sign-ins that failed
    /// are counted together.
    #[must_use]
    pub fn with_peers(mut self, peer: fn(&http::Extensions) -> Option<IpAddr>) -> Self {
        self.peer = peer;
        self
    }

    /// Tells ages by this clock: the platform's.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Ends the streams of live pages when this is cancelled, so that no browser that looks holds up a server's shutdown.
    #[must_use]
    pub fn ending_with(mut self, stop: CancellationToken) -> Self {
        self.live = Arc::new(Live::new(stop));
        self
    }

    async fn answer(&self, request: Request) -> Result<Response> {
        let (head, body) = request.into_parts();
        let path = head.uri.path().strip_prefix(PREFIX).unwrap_or_default().to_owned();
        if let Some(name) = path.strip_prefix("/assets/") {
            let asset = assets::answer(name, &head.headers);
            return asset.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "there is no such file"));
        }
        let reads = matches!(head.method, Method::GET | Method::HEAD);
        let posts = head.method == Method::POST;
        if !reads && !posts {
            return Err(Problem::new(StatusCode::METHOD_NOT_ALLOWED, "pages are read, and forms are sent"));
        }
        if posts {
            same_origin(&head)?;
        }
        if path == "/sign-in" && posts {
            return self.sign_in(&head, body).await;
        }
        let target = head.uri.path_and_query().map_or(PREFIX, |target| target.as_str()).to_owned();
        let Some(session) = self.sessions.of(&head.headers) else {
            return self.ask_to_sign_in(&head, if posts { "/console/" } else { &target }).await;
        };
        let api = self.api(&head, Some(session.token.clone()));
        let who: Who = match api.get("/v1/whoami").await {
            Ok(who) => who,
            Err(problem) if problem.is(StatusCode::UNAUTHORIZED) => {
                self.sessions.close(&head.headers);
                return self.ask_to_sign_in(&head, "/console/").await;
            }
            Err(problem) => return Err(problem),
        };
        if posts && path == "/do/package" {
            return package(&head, body, &session, &api).await;
        }
        if posts {
            return self.act(&head, body, &path, &session, &api).await;
        }
        let query = Form::parse(head.uri.query().unwrap_or_default());
        if path == "/live" {
            return self.stream(&head, &query, &who, session, api);
        }
        if let Some(picture) = workflow::picture(&path, &query) {
            return Ok(svg(api.text(&picture).await?));
        }
        let missing = || Problem::new(StatusCode::NOT_FOUND, format!("there is no page at {PREFIX}{path}"));
        let place = Place::of(&path, &query).ok_or_else(missing)?;
        let page = place.show(&api, &who, &session.form).await?;
        let frame = Frame { who: &who, session: &session, place: &place, target: &target };
        Ok(document(StatusCode::OK, frame::whole(&frame, &page)))
    }

    fn api(&self, head: &Parts, token: Option<Secret>) -> Api {
        let host = head.headers.get(header::HOST).cloned();
        let host = host.or_else(|| HeaderValue::from_str(head.uri.authority()?.as_str()).ok());
        // Without a name, the admin API says what is missing.
        let host = host.unwrap_or(HeaderValue::from_static(""));
        Api { admin: Arc::clone(&self.admin), token, host, clock: Arc::clone(&self.clock) }
    }

    /// The admin API knows which hosts are its own: a name that was rebound to this address gets no page at all.
    async fn ask_to_sign_in(&self, head: &Parts, next: &str) -> Result<Response> {
        match self.api(head, None).get::<Who>("/v1/whoami").await {
            Err(problem) if problem.is(StatusCode::FORBIDDEN) => return Err(problem),
            _ => {}
        }
        Ok(document(StatusCode::UNAUTHORIZED, frame::sign_in(next, None)))
    }

    async fn sign_in(&self, head: &Parts, body: Body) -> Result<Response> {
        let form = read(body).await?;
        let peer = (self.peer)(&head.extensions);
        let next = Some(form.get("next")).filter(|next| is_own(next)).unwrap_or("/console/");
        let refused = |status, problem: &str| document(status, frame::sign_in(next, Some(problem)));
        if !self.sessions.may_try(peer) {
            let problem = "Too many sign-ins failed within a minute. Wait for a minute.";
            return Ok(refused(StatusCode::TOO_MANY_REQUESTS, problem));
        }
        let token = Secret::new(form.get("token"));
        match self.api(head, Some(token.clone())).get::<Who>("/v1/whoami").await {
            Ok(_) => {
                let id = self.sessions.open(token).map_err(|error| {
                    Problem::new(
                        StatusCode::SERVICE_UNAVAILABLE,
                        format!("no session can be opened: {error}"),
                    )
                })?;
                Ok(to(next, Some(&set_cookie(&head.headers, &id, self.secure))))
            }
            Err(problem) if problem.is(StatusCode::UNAUTHORIZED) => {
                self.sessions.failed(peer);
                Ok(refused(
                    StatusCode::UNAUTHORIZED,
                    "This token opens nothing here. It may have been revoked, or ended.",
                ))
            }
            Err(problem) => Err(problem),
        }
    }

    async fn act(
        &self,
        head: &Parts,
        body: Body,
        path: &str,
        session: &Session,
        api: &Api,
    ) -> Result<Response> {
        let form = read(body).await?;
        if !session.made(form.get("form")) {
            let detail = "this form was not made for this session: load the page again, and send it then";
            return Err(Problem::new(StatusCode::FORBIDDEN, detail));
        }
        if path == "/sign-out" {
            self.sessions.close(&head.headers);
            return Ok(to("/console/", Some(&set_cookie(&head.headers, "", self.secure))));
        }
        let done = action::perform(path, &form, api).await;
        let done = done.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "there is no such action"))??;
        *session.said.lock() = Some(done.said);
        let back = Some(form.get("back")).filter(|back| is_own(back)).unwrap_or("/console/");
        Ok(to(done.to.as_deref().unwrap_or(back), None))
    }

    fn stream(
        &self,
        head: &Parts,
        query: &Form,
        who: &Who,
        session: Arc<Session>,
        api: Api,
    ) -> Result<Response> {
        let target = query.get("page");
        let (path, of) = target.split_once('?').unwrap_or((target, ""));
        let path = path.strip_prefix(PREFIX);
        let place = path.and_then(|path| Place::of(path, &Form::parse(of)));
        let missing = || Problem::new(StatusCode::NOT_FOUND, format!("there is no page {target:?}"));
        let place = place.ok_or_else(missing)?;
        let resumed = head.headers.get("last-event-id").and_then(|id| id.to_str().ok());
        let after = resumed.or(Some(query.get("after")).filter(|after| !after.is_empty()));
        self.live.stream(target, place, who, session, api, after)
    }
}

/// Refuses forms of other origins. Browsers say where a form comes from by both headers; who says neither is no browser that
/// could have been led here, and needs the cookie and the session's mark all the same.
fn same_origin(head: &Parts) -> Result<()> {
    let own = |origin: &HeaderValue| {
        let origin = origin.to_str().unwrap_or_default();
        let of = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        let host = head.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let host = head.uri.authority().map(http::uri::Authority::as_str).or(host);
        of.is_some() && of.map(str::to_ascii_lowercase) == host.map(str::to_ascii_lowercase)
    };
    let foreign = head.headers.get_all(header::ORIGIN).iter().any(|origin| !own(origin));
    let site = head.headers.get_all("sec-fetch-site").iter().any(|site| site != "same-origin");
    if foreign || site {
        return Err(Problem::new(StatusCode::FORBIDDEN, "a form of another site is not taken"));
    }
    Ok(())
}

/// Whether it is a page of this console: nobody is sent elsewhere.
fn is_own(target: &str) -> bool {
    let below = target.strip_prefix("/console/");
    below.is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\'))
}

/// Takes a package that was dropped on the form of a deploy, and gives a manifest that names it.
async fn package(head: &Parts, body: Body, session: &Session, api: &Api) -> Result<Response> {
    let form = head.headers.get("x-form").and_then(|form| form.to_str().ok()).unwrap_or_default();
    if !session.made(form) {
        return Ok(text(
            StatusCode::FORBIDDEN,
            "this page was not made for this session: load it again".to_owned(),
        ));
    }
    let query = Form::parse(head.uri.query().unwrap_or_default());
    match action::package(query.get("name"), body, api).await {
        Ok(manifest) => Ok(text(StatusCode::OK, manifest)),
        Err(problem) => Ok(text(
            StatusCode::from_u16(problem.status).unwrap_or(StatusCode::BAD_GATEWAY),
            problem.sentence(),
        )),
    }
}

/// A picture of the platform's. Its texts are those of tenants: wherever it is opened, nothing in it runs or loads anything.
fn svg(picture: Bytes) -> Response {
    let mut response = Response::new(Body::from(picture));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("image/svg+xml"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox"));
    response
}

fn text(status: StatusCode, text: String) -> Response {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

async fn read(body: Body) -> Result<Form> {
    let read = body.collect(FORM).await;
    let read = read.map_err(|error| {
        Problem::new(StatusCode::BAD_REQUEST, format!("the form can't be read: {error}; it may have 2 MiB"))
    })?;
    Ok(Form::parse(&String::from_utf8_lossy(&read)))
}

fn document(status: StatusCode, page: Markup) -> Response {
    let mut response = Response::new(Body::from(page.into_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    response
}

fn to(target: &str, cookie: Option<&str>) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SEE_OTHER;
    let location = HeaderValue::try_from(target).or_else(|_| HeaderValue::try_from(escaped(target)));
    response
        .headers_mut()
        .insert(header::LOCATION, location.unwrap_or(HeaderValue::from_static("/console/")));
    if let Some(Ok(cookie)) = cookie.map(HeaderValue::try_from) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

#[async_trait]
impl Handler for Console {
    async fn handle(&self, request: Request) -> Response {
        let path = request.uri().path();
        if path == PREFIX {
            return to("/console/", None);
        }
        if !path.strip_prefix(PREFIX).is_some_and(|rest| rest.starts_with('/')) {
            return self.admin.handle(request).await;
        }
        let mut response = match self.answer(request).await {
            Ok(response) => response,
            Err(problem) => {
                let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::BAD_GATEWAY);
                document(status, frame::refused(&problem))
            }
        };
        let headers = response.headers_mut();
        let all = [
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "same-origin"),
            (header::X_FRAME_OPTIONS, "DENY"),
        ];
        for (name, value) in all {
            headers.entry(name).or_insert(HeaderValue::from_static(value));
        }
        headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        response
    }
}
