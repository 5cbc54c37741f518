BEGIN TRANSACTION;
CREATE TABLE current_runbooks (
	name TEXT NOT NULL, 
	version TEXT NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "current_runbooks" VALUES('shop','v2');
CREATE TABLE drengine_version (
	version INTEGER NOT NULL, 
	PRIMARY KEY (version)
);
INSERT INTO "drengine_version" VALUES(1);
CREATE TABLE holds (
	source TEXT NOT NULL, 
	run TEXT NOT NULL, 
	PRIMARY KEY (source), 
	FOREIGN KEY(run) REFERENCES runs (id)
);
INSERT INTO "holds" VALUES('shop','r2');
INSERT INTO "holds" VALUES('db','r2');
CREATE TABLE journal (
	run TEXT NOT NULL, 
	seq INTEGER NOT NULL, 
	step TEXT NOT NULL, 
	event TEXT NOT NULL, 
	attempt INTEGER NOT NULL, 
	at_ns BIGINT NOT NULL, 
	payload TEXT NOT NULL, 
	PRIMARY KEY (run, seq), 
	FOREIGN KEY(run) REFERENCES runs (id)
);
INSERT INTO "journal" VALUES('r1',1,'','decision',1,10,'{"n":1,"text":"\u0000"}');
INSERT INTO "journal" VALUES('r1',2,'s2','intent',2,20,'{"n":2,"text":"\u0000"}');
INSERT INTO "journal" VALUES('r1',3,'s3','intent',3,30,'{"n":3,"text":"\u0000"}');
INSERT INTO "journal" VALUES('r1',4,'s4','intent',4,40,'{"n":4,"text":"\u0000"}');
INSERT INTO "journal" VALUES('r1',5,'s5','intent',5,50,'{"n":5,"text":"\u0000"}');
INSERT INTO "journal" VALUES('r2',1,'','decision',0,31,'{"decision":"planned"}');
CREATE TABLE leases (
	name TEXT NOT NULL, 
	owner TEXT NOT NULL, 
	token BIGINT NOT NULL, 
	granted_ns BIGINT NOT NULL, 
	expires_ns BIGINT NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "leases" VALUES('run:r1','',3,1,0);
INSERT INTO "leases" VALUES('run:r2','host:1:ab',1,5,9);
CREATE TABLE parties (
	kind TEXT NOT NULL, 
	name TEXT NOT NULL, 
	report TEXT NOT NULL, 
	reported_ns BIGINT NOT NULL, 
	online BOOLEAN NOT NULL, 
	since_ns BIGINT NOT NULL, 
	instance TEXT NOT NULL, 
	sequence BIGINT NOT NULL, 
	release TEXT NOT NULL, 
	PRIMARY KEY (kind, name)
);
INSERT INTO "parties" VALUES('agent','shop','{"name":"shop"}',5,1,4,'i',7,'1.0');
INSERT INTO "parties" VALUES('host','rescue','',0,0,0,'',-1,'');
CREATE TABLE requests (
	run TEXT NOT NULL, 
	seq INTEGER NOT NULL, 
	kind TEXT NOT NULL, 
	step TEXT NOT NULL, 
	"by" TEXT NOT NULL, 
	note TEXT NOT NULL, 
	at_ns BIGINT NOT NULL, 
	PRIMARY KEY (run, seq), 
	FOREIGN KEY(run) REFERENCES runs (id)
);
INSERT INTO "requests" VALUES('r1',1,'approve','s2','cy','looks fine',15);
INSERT INTO "requests" VALUES('r2',1,'abort','','ann','',33);
CREATE TABLE runbooks (
	name TEXT NOT NULL, 
	version TEXT NOT NULL, 
	text TEXT NOT NULL, 
	at_ns BIGINT NOT NULL, 
	PRIMARY KEY (name, version)
);
INSERT INTO "runbooks" VALUES('shop','v1','version: 1 # ü ☃ ''quoted''
',1);
INSERT INTO "runbooks" VALUES('shop','v2','version: 1
name: shop
',2);
CREATE TABLE runs (
	id TEXT NOT NULL, 
	mode TEXT NOT NULL, 
	runbook TEXT NOT NULL, 
	version TEXT NOT NULL, 
	sources TEXT NOT NULL, 
	started_by TEXT NOT NULL, 
	created_ns BIGINT NOT NULL, 
	options TEXT NOT NULL, 
	state TEXT NOT NULL, 
	outcome TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	finished_ns BIGINT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "runs" VALUES('r1','drill','shop','v1','["shop"]','ann',10,'{"point":"latest"}','finished','completed','all-done',20);
INSERT INTO "runs" VALUES('r2','failover','shop','v2','["shop","db"]','ben',30,'{}','waiting','','approval-needed',0);
CREATE TABLE schedules (
	name TEXT NOT NULL, 
	due_ns BIGINT NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "schedules" VALUES('shop',77);
CREATE INDEX runs_by_time ON runs (created_ns);
CREATE INDEX runs_by_runbook ON runs (runbook, created_ns);
CREATE INDEX ix_holds_run ON holds (run);
COMMIT;
