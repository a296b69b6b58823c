SECRET_KEY = "only for a test"
ALLOWED_HOSTS = [".localhost"]
ROOT_URLCONF = "shop.urls"
WSGI_APPLICATION = "shop.wsgi.application"
USE_TZ = True
