-- The database of slurmdbd. Run as the database's administrator; may be run again.
-- slurm_install.sh --print-sql fills in the names and the password; --init-database runs it on this host.
CREATE DATABASE IF NOT EXISTS `@DB_NAME@` CHARACTER SET utf8mb4;
CREATE USER IF NOT EXISTS '@DB_USER@'@'@DB_CLIENT@' IDENTIFIED BY '@DB_PASSWORD@';
ALTER USER '@DB_USER@'@'@DB_CLIENT@' IDENTIFIED BY '@DB_PASSWORD@';
-- Tables, indices and routines are made and altered by slurmdbd itself, at its start and after an upgrade.
GRANT ALL PRIVILEGES ON `@DB_NAME@`.* TO '@DB_USER@'@'@DB_CLIENT@';
