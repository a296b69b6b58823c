@echo off
java -classpath "%~dp0..\lib\shop.jar" Shop %*
