// Answers with a file of its folder /data, by the CGI convention; a POST writes it first. Plain C with a libc.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(void) {
  const char *path = getenv("PATH_INFO"), *method = getenv("REQUEST_METHOD");
  char name[512], buffer[4096];
  size_t n;
  snprintf(name, sizeof name, "/data%s", path ? path : "/");
  if (method && !strcmp(method, "POST")) {
    FILE *out = fopen(name, "wb");
    if (!out) {
      printf("Status: 403 Forbidden\n\n");
      return 0;
    }
    while ((n = fread(buffer, 1, sizeof buffer, stdin)) > 0) fwrite(buffer, 1, n, out);
    fclose(out);
  }
  FILE *file = fopen(name, "rb");
  if (!file) {
    fprintf(stderr, "no file %s\n", name);
    printf("Status: 404 Not Found\n\n");
    return 0;
  }
  printf("Content-Type: text/plain\n\n");
  while ((n = fread(buffer, 1, sizeof buffer, file)) > 0) fwrite(buffer, 1, n, stdout);
  return 0;
}
